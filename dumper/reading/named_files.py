"""Files whose names are the index of a recording: what the rules of SGLang's comparator look at beside the records, and
names that tell a dump of SGLang's, and what is made of one, from other recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

SGLANG_NAMES = frozenset({"input_ids", "positions", "seq_lens", "req_pool_indices", "rids"})
MEGATRON_NAMES = frozenset({"input_ids", "position_ids", "cu_seqlens_q", "cu_seqlens_kv", "qkv_format"})
AUXILIARY_NAMES = SGLANG_NAMES | MEGATRON_NAMES
"""Names that the dumper gives to what it records of a batch by itself."""
CONVERTED = "converted-from-sglang-pt"
"""Among the versions in the header of a run that was made from a dump."""
PARALLEL_KEYS = ("sglang_parallel_info", "megatron_parallel_info")
"""Keys of the metadata that hold a rank's place, ``{"tp_rank": 0, "tp_size": 2, ...}``."""


class NamedFile(Protocol):
    """A file whose name and metadata tell the one record in it, as SGLang's dumper writes them. The rules of SGLang's
    comparator, which hold between two runs of such files, look at what stands here."""

    @property
    def filename(self) -> str: ...
    @property
    def dumped_name(self) -> str:
        """The name in the file's name; of a gradient it differs from the record's."""

    @property
    def parts(self) -> Mapping[str, str]:
        """The parts of the file name, as they are written."""

    @property
    def step(self) -> int: ...
    @property
    def meta(self) -> Mapping[str, Any]:
        """The parts of the name and the file's own metadata, which win."""

    @property
    def own_meta(self) -> Mapping[str, Any]:
        """The file's own metadata alone."""

    @property
    def parallel(self) -> Mapping[str, tuple[int, int]]:
        """Axis name to ``(rank, size)``, as the metadata has them."""

    def raw_value(self) -> Any:
        """What the file holds, a ``torch.Tensor`` or plain values with such tensors in them. Raises ValueError where it
        cannot be read."""

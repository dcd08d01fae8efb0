"""Files whose names are the index of a recording: what the rules of SGLang's comparator look at beside the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


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

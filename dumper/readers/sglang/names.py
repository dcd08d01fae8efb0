"""What tells a dump of SGLang's, and what is made of one, from other recordings: names, without the reader itself."""

from __future__ import annotations

SGLANG_NAMES = frozenset({"input_ids", "positions", "seq_lens", "req_pool_indices", "rids"})
MEGATRON_NAMES = frozenset({"input_ids", "position_ids", "cu_seqlens_q", "cu_seqlens_kv", "qkv_format"})
AUXILIARY_NAMES = SGLANG_NAMES | MEGATRON_NAMES
"""Names that the dumper gives to what it records of a batch by itself."""
CONVERTED = "converted-from-sglang-pt"
"""Among the versions in the header of a run that was made from a dump."""
PARALLEL_KEYS = ("sglang_parallel_info", "megatron_parallel_info")
"""Keys of the metadata that hold a rank's place, ``{"tp_rank": 0, "tp_size": 2, ...}``."""

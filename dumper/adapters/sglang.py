"""SGLang, releases 0.5.9 and later: the ``ForwardBatch`` of a pass as a token layout.

The batch is read inside the pass, after data-parallel padding, or after the pass, when SGLang has put part of
the padding back; both states give the same layout. Only the row count of ``input_ids`` is trusted for the rows
of the pass (it stays padded), and only the request ids or the batch size from before the padding for the number
of real sequences.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from dumper.adapters import sglang_graphs, sglang_parallel
from dumper.adapters.framework_values import installed_versions, layout_of
from dumper.adapters.protocol import GraphFacts, Parallel, PassSize, PendingLayout
from dumper.adapters.sglang_rows import Array, Encoded, GatherFacts, PassFacts, SlotNames, build_layout
from dumper.adapters.torch_distributed import group_rank
from dumper.layout import ContextParallelRows, TokenLayout

_BACKENDS = (
    "attention_backend", "prefill_attention_backend", "decode_attention_backend", "sampling_backend",
    "moe_runner_backend", "fp8_gemm_runner_backend", "mm_attention_backend",
)  # fmt: skip
_DISTRIBUTIONS = ("sglang", "torch", "transformers", "flashinfer-python", "sgl-kernel")


class SGLangAdapter:
    """Ranks, axes and batches of an SGLang scheduler process."""

    name = "sglang"
    complete_at_start = False

    def __init__(self) -> None:
        self._slot_names = SlotNames()
        self._noted: tuple[weakref.ref[object], tuple[Encoded, ...]] | None = None
        """The batch of the step under way, and what in it comes out of an encoder."""

    def rank(self) -> tuple[int, int] | None:
        place = group_rank() if sglang_parallel.initialised() else None
        if place is None:
            return None
        rank, world_size = place
        # Whole-model replicas (--dp without data-parallel attention) are worlds of their own.
        replica, replicas = sglang_parallel.parallel_axes().get("dp", (0, 1))
        return replica * world_size + rank, replicas * world_size

    def parallel(self) -> Parallel:
        return sglang_parallel.parallel_axes() if sglang_parallel.initialised() else {}

    def versions(self) -> dict[str, str]:
        return installed_versions(*_DISTRIBUTIONS)

    def backends(self) -> dict[str, str]:
        """What the server's arguments came to, where it was left to SGLang to choose."""
        context = sys.modules.get("sglang.srt.runtime_context")
        if context is None or not hasattr(context, "get_exec"):  # before 0.5.20
            return {}
        try:
            kernel = context.get_exec().kernel
        except ValueError:
            return {}  # a process that uses SGLang's modules and serves nothing has chosen nothing
        found = {name: getattr(kernel, name, None) for name in _BACKENDS}
        return {f"sglang.{name}": str(value) for name, value in found.items() if value is not None}

    def accepts(self, batch: object) -> bool:
        return all(hasattr(batch, name) for name in ("forward_mode", "req_pool_indices", "positions", "seq_lens"))

    def note_start(self, batch: object) -> None:
        """Which rows images and sound fill: a pass forgets its inputs and overwrites their token ids."""
        encoded = encoded_of(batch)
        self._noted = (weakref.ref(batch), encoded) if encoded else None

    def read_batch(self, batch: object) -> TokenLayout | PendingLayout | None:
        """Raises ValueError when the batch contradicts itself."""
        slot_names = self._slot_names
        gather = _gather(batch)
        context_parallel = _context_parallel(batch)
        noted = self._noted
        encoded = noted[1] if noted is not None and noted[0]() is batch else encoded_of(batch)
        known = {**_host_facts(batch), "encoded": encoded}

        def build(arrays: dict[str, Array]) -> TokenLayout:
            return build_layout(_facts(known, arrays), gather, context_parallel, slot_names)

        # SGLang passes no padding rows but those of data-parallel ranks.
        size = PassSize(known["rows"], known["sequence_count"], gather is not None)
        return layout_of(_device_tensors(batch), build, None if context_parallel else size)

    def graph_facts(self) -> GraphFacts | None:
        return sglang_graphs.facts_of_callers(sys._getframe(1))


def encoded_of(batch: Any) -> tuple[Encoded, ...]:
    """What images, videos and sound fill in the sequences of a pass, by the offsets that the processor gave them."""
    inputs = getattr(batch, "mm_inputs", None)
    if not inputs or _mode(batch) == "decode":
        return ()
    found = []
    for sequence, one in enumerate(inputs):
        for item in getattr(one, "mm_items", ()):
            kind = str(getattr(getattr(item, "modality", None), "name", "")).lower()
            content = getattr(item, "hash", None)
            for span in getattr(item, "offsets", None) or ():
                if len(span) == 2:
                    found.append(Encoded(sequence, int(span[0]), int(span[1]) + 1, kind, int(content or 0)))
    return tuple(found)


def _device_tensors(batch: Any) -> dict[str, Any]:
    """What has to be read from tensors; nothing that a field on the host says as well."""
    tensors = {
        "token_ids": getattr(batch, "input_ids", None),
        "positions": getattr(batch, "positions", None),
        "sequence_lengths": _first(batch, "seq_lens_cpu", "seq_lens"),
    }
    if getattr(batch, "extend_seq_lens", None) is not None or _first(batch, "extend_seq_lens_cpu") is not None:
        tensors["extend_counts"] = _first(batch, "extend_seq_lens_cpu", "extend_seq_lens")
        tensors["extend_starts"] = _first(batch, "extend_prefix_lens_cpu", "extend_prefix_lens")
    speculative = getattr(batch, "spec_info", None)
    if speculative is not None and _mode(batch) == "target_verify":
        tensors["first_children"] = _first(speculative, "retrieve_next_token", "retrive_next_token")
        tensors["next_siblings"] = _first(speculative, "retrieve_next_sibling", "retrive_next_sibling")
    if getattr(batch, "rids", None) is None:
        tensors["slots"] = _first(batch, "req_pool_indices_cpu", "req_pool_indices")
    return tensors


def _host_facts(batch: Any) -> dict[str, Any]:
    rids: Sequence[str] | None = getattr(batch, "rids", None)
    speculative = getattr(batch, "spec_info", None)
    mode = _mode(batch)
    extra: dict[str, Any] = {}
    if speculative is not None:
        extra["speculative"] = type(speculative).__name__
    if mode == "split_prefill":
        extra["split_index"] = int(getattr(batch, "split_index", 0))
    return {
        "mode": mode,
        "sequence_count": _sequence_count(batch, rids),
        "rows": _rows(batch),
        "request_ids": None if rids is None else tuple(str(rid) for rid in rids),
        "tokens_per_sequence": _tokens_per_sequence(speculative),
        "speculative": speculative is not None,
        "extra": extra,
    }


def _facts(known: dict[str, Any], arrays: dict[str, Any]) -> PassFacts:
    facts = PassFacts(**known, **arrays)
    if facts.mode == "decode" and facts.speculative and facts.sequence_count:
        # A draft model decodes one row per branch of its tree, and not every release says how many.
        count = len(facts.positions) if facts.positions is not None else facts.rows
        if facts.tokens_per_sequence * facts.sequence_count > count:
            return PassFacts(**{**known, "tokens_per_sequence": count // facts.sequence_count}, **arrays)
    return facts


def _mode(batch: Any) -> str:
    original = getattr(batch, "_original_forward_mode", None)
    mode = batch.forward_mode if original is None else original
    return str(getattr(mode, "name", mode)).lower()


def _sequence_count(batch: Any, rids: Sequence[str] | None) -> int:
    if rids is not None:
        return len(rids)
    original = getattr(batch, "_original_batch_size", None)
    return int(batch.batch_size if original is None else original)


def _rows(batch: Any) -> int:
    for name in ("input_ids", "input_embeds", "positions"):
        tensor = getattr(batch, name, None)
        if tensor is not None:
            return int(tensor.shape[0])
    return 0


def _tokens_per_sequence(speculative: Any) -> int:
    for name in ("num_tokens_per_req", "draft_token_num"):
        value = getattr(speculative, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1


def _gather(batch: Any) -> GatherFacts | None:
    rows = _first(batch, "global_num_tokens_padded_cpu", "global_num_tokens_cpu")
    if rows is None or len(rows) < 2:
        return None
    axes = sglang_parallel.parallel_axes()
    rank, size = axes.get("attn_dp", (0, 1))
    if size != len(rows):
        return None
    rows = tuple(int(value) for value in rows)
    counts = getattr(batch, "original_global_num_tokens_cpu", None)
    mode = getattr(batch, "dp_padding_mode", None)
    padding: Literal["max_len", "sum_len"]
    if mode is not None:
        padding = "max_len" if mode.is_max_len() else "sum_len"
    else:
        # Not padded by the pass itself: a CUDA graph replays the shape of the longest rank.
        padding = "sum_len" if getattr(batch, "is_extend_in_batch", False) else "max_len"
        if padding == "max_len":
            rows = (max(rows),) * size
    return GatherFacts(
        rank=rank,
        rows=rows,
        counts=None if counts is None or len(counts) != size else tuple(int(count) for count in counts),
        padding=padding,
    )


def _context_parallel(batch: Any) -> ContextParallelRows | None:
    """How context parallelism splits the rows inside the model; the rows of the batch are the whole pass."""
    metadata = _first(batch, "attn_cp_metadata", "nsa_cp_metadata")
    if metadata is None:
        return None
    rank, size = sglang_parallel.parallel_axes().get("attn_cp", (0, 1))
    if size == 1:
        return None
    zigzag = getattr(metadata, "zigzag_index", None) is not None
    return ContextParallelRows(
        axis="attn_cp", rank=rank, size=size, ordering="zigzag" if zigzag else "interleave", local=False
    )


def _first(batch: Any, *names: str) -> Any:
    """The first of these attributes that is there and not None."""
    for name in names:
        value = getattr(batch, name, None)
        if value is not None:
            return value
    return None

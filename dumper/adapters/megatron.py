"""Megatron-core: the arguments of ``GPTModel.forward`` as a token layout.

``dumper.step(batch)`` takes them as a mapping: ``input_ids`` (or ``tokens``) of shape (batch, sequence) and
``packed_seq_params`` (None for batches that are not packed), and whichever of ``labels``, ``inference_context``
there are. Under context parallelism the tokens are this rank's part, in Megatron's zigzag order
(``megatron.core.utils.get_batch_on_this_cp_rank``; packed: the same within every sequence's padded length).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.adapters.framework_values import installed_versions, layout_of, quietly
from dumper.adapters.protocol import Parallel, PendingLayout
from dumper.adapters.torch_distributed import group_rank
from dumper.layout import PADDING_ROW, ContextParallelRows, SequenceSpan, TokenLayout, zigzag_blocks

Array = npt.NDArray[np.int64]

_STATE = "megatron.core.parallel_state"
_AXES = {
    "tp": "tensor_model_parallel",
    "pp": "pipeline_model_parallel",
    "cp": "context_parallel",
    "dp": "data_parallel",
    "ep": "expert_model_parallel",
    "etp": "expert_tensor_parallel",
    "edp": "expert_data_parallel",
    "vpp": "virtual_pipeline_model_parallel",
}


class MegatronAdapter:
    """Ranks, axes and batches of a Megatron-core process."""

    name = "megatron"
    complete_at_start = True

    def __init__(self) -> None:
        self._passes = 0

    def rank(self) -> tuple[int, int] | None:
        return group_rank() if self.parallel() else None

    def parallel(self) -> Parallel:
        state = sys.modules.get(_STATE)
        if state is None or not quietly(state.model_parallel_is_initialized):
            return {}
        axes: Parallel = {}
        for axis, name in _AXES.items():
            rank = quietly(getattr(state, f"get_{name}_rank", None) or (lambda: None))
            size = quietly(getattr(state, f"get_{name}_world_size", None) or (lambda: None))
            if isinstance(rank, int) and isinstance(size, int) and 0 <= rank < size:
                axes[axis] = rank, size
        return axes

    def versions(self) -> dict[str, str]:
        return installed_versions("megatron-core", "torch", "transformer-engine")

    def model_facts(self, batch: object) -> dict[str, str]:
        """Of the model itself, where ``self`` is among the arguments, as it is in a tap's ``$arguments``."""
        return facts_of_model(batch.get("self")) if isinstance(batch, Mapping) else {}

    def accepts(self, batch: object) -> bool:
        return (
            isinstance(batch, Mapping)
            and "packed_seq_params" in batch
            and len(getattr(_tokens(batch), "shape", ())) == 2
        )

    def read_batch(self, batch: object) -> TokenLayout | PendingLayout | None:
        """Raises ValueError when the packed lengths and the tokens contradict each other."""
        assert isinstance(batch, Mapping)
        tokens, packed = _tokens(batch), batch["packed_seq_params"]
        cp_rank, cp_size = self.parallel().get("cp", (0, 1))
        past = _past(batch)
        mode = "train" if past is None else "decode" if past and tokens.shape[1] == 1 else "prefill"
        if not past:
            self._passes += 1  # What continues a cache belongs to the sequences that filled it.
        number = self._passes
        bounds = getattr(packed, "cu_seqlens_q", None)
        padded = getattr(packed, "cu_seqlens_q_padded", None)
        shape = int(tokens.shape[0]), int(tokens.shape[1])

        def build(arrays: dict[str, Array]) -> TokenLayout:
            return build_layout(ModelInput(number, mode, shape, cp_rank, cp_size, past or 0, **arrays))

        return layout_of({"tokens": tokens, "bounds": bounds, "padded_bounds": padded}, build)


@dataclass(frozen=True)
class ModelInput:
    """What a forward pass was given, on the host; arrays are flat."""

    number: int
    """Number of the batch: of the microbatch when training, of the generation when there is a cache."""
    mode: str
    shape: tuple[int, int]
    """(batch, sequence), of this rank's part under context parallelism."""
    cp_rank: int
    cp_size: int
    past: int
    """Tokens before this pass, in inference with a cache."""
    tokens: Array
    bounds: Array | None = None
    """Cumulative lengths of the packed sequences, of the whole pack."""
    padded_bounds: Array | None = None
    """The same with each sequence padded, where it is."""


def build_layout(given: ModelInput) -> TokenLayout:
    """The token layout of the pass. Raises ValueError when packed lengths and tokens contradict each other."""
    if given.bounds is None:
        sequence, position = _batch_rows(given)
        count = given.shape[0]
    else:
        sequence, position = _packed_rows(given)
        count = len(given.bounds) - 1
    spans = []
    for index in range(count):
        positions = position[sequence == index]
        start = int(positions.min()) if len(positions) else 0
        spans.append(SequenceSpan(f"{given.number}-{index}", start, len(positions)))
    context_parallel = None
    if given.cp_size > 1:
        context_parallel = ContextParallelRows("cp", given.cp_rank, given.cp_size, "zigzag", local=True)
    return TokenLayout(
        forward_mode=given.mode,
        sequences=tuple(spans),
        rows=given.shape[0] * given.shape[1],
        token_ids=given.tokens,
        row_sequence=sequence,
        row_position=position,
        batch_shape=given.shape,
        context_parallel=context_parallel,
    )


def facts_of_model(model: Any) -> dict[str, str]:
    """What the config of a ``GPTModel`` says, under the names of Transformers' (``dumper.adapters.model_facts``), so
    that the headers of a trainer and a server can be compared; empty for what has no such config."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "kv_channels", None) is None:
        return {}

    def told(name: str) -> Any:
        return getattr(config, name, None)

    theta = getattr(model, "rotary_base", None) if getattr(model, "position_embedding_type", None) == "rope" else None
    facts = {
        "dtype": str(told("params_dtype")).removeprefix("torch."),
        "hidden_size": told("hidden_size"),
        "num_attention_heads": told("num_attention_heads"),
        "head_dim": told("kv_channels"),
        "rms_norm_eps": told("layernorm_epsilon") if told("normalization") == "RMSNorm" else None,
        "rope_theta": float(theta) if theta else None,
        "tie_word_embeddings": getattr(model, "share_embeddings_and_output_weights", None),
    }
    if told("num_moe_experts"):
        scoring = told("moe_router_score_function") or "softmax"
        facts |= {
            "num_experts_per_tok": told("moe_router_topk"),
            "n_group": told("moe_router_num_groups"),
            "topk_group": told("moe_router_group_topk"),
            "routed_scaling_factor": told("moe_router_topk_scaling_factor"),
            "norm_topk_prob": not told("moe_router_pre_softmax") if scoring == "softmax" else None,
        }
        if told("moe_router_enable_expert_bias"):
            facts |= {"topk_method": "noaux_tc", "scoring_func": scoring}
    return {f"model.{name}": str(value) for name, value in facts.items() if value is not None}


def zigzag_positions(length: int, rank: int, size: int) -> Array:
    """The positions of a sequence that a context-parallel rank holds, in its order: of ``2 x size`` equal chunks
    the one of its number and the one of its number from the end.

    Raises ValueError when ``length`` is not a multiple of ``2 x size``.
    """
    if size == 1:
        return np.arange(length, dtype=np.int64)
    if length % (2 * size):
        raise ValueError(f"a sequence of {length} tokens cannot be split over {size} context-parallel ranks")
    chunks = np.arange(length, dtype=np.int64).reshape(2 * size, -1)
    return np.concatenate([chunks[block] for block in zigzag_blocks(rank, size)])


def _batch_rows(given: ModelInput) -> tuple[npt.NDArray[np.int32], Array]:
    batch, length = given.shape
    position = zigzag_positions(length * given.cp_size, given.cp_rank, given.cp_size) + given.past
    return np.repeat(np.arange(batch, dtype=np.int32), length), np.tile(position, batch)


def _packed_rows(given: ModelInput) -> tuple[npt.NDArray[np.int32], Array]:
    """Sequences one after the other, each padded, each split over the context-parallel ranks on its own."""
    assert given.bounds is not None
    rows = given.shape[0] * given.shape[1]
    lengths = np.diff(given.bounds)
    padded = lengths if given.padded_bounds is None else np.diff(given.padded_bounds)
    if len(padded) != len(lengths) or bool((padded < lengths).any()):
        raise ValueError("cu_seqlens_q_padded does not fit cu_seqlens_q")
    sequence = np.full(rows, PADDING_ROW, np.int32)
    position = np.zeros(rows, np.int64)
    row = 0
    for index, (length, room) in enumerate(zip(lengths, padded, strict=True)):
        held = zigzag_positions(int(room), given.cp_rank, given.cp_size)
        part = slice(row, row + len(held))
        row += len(held)
        if row > rows:
            raise ValueError(f"packed sequences of {int(padded.sum())} tokens, but {rows} rows on this rank")
        sequence[part] = np.where(held < length, index, PADDING_ROW)
        position[part] = np.where(held < length, held, 0)
    return sequence, position


def _tokens(batch: Mapping[str, Any]) -> Any:
    tokens = batch.get("input_ids")
    return batch.get("tokens") if tokens is None else tokens


def _past(batch: Mapping[str, Any]) -> int | None:
    """Tokens in the cache of an inference pass, None when this is no inference."""
    for name in ("inference_context", "inference_params"):
        context = batch.get(name)
        if context is not None:
            return int(getattr(context, "sequence_len_offset", 0))
    return None

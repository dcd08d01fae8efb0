"""Where a rank of SGLang stands in the parallel layout, for every release from 0.5.9.

Older releases answer through functions of ``distributed.parallel_state`` and ``layers.dp_attention``, newer ones
through ``runtime_context.get_parallel()``. Each axis is asked wherever a release may know it; modules that the
process has not imported are not imported here.
"""

from __future__ import annotations

import sys
from typing import Any

from dumper.adapters.framework_values import quietly
from dumper.adapters.protocol import Parallel

_STATE = "sglang.srt.distributed.parallel_state"
_ATTENTION = "sglang.srt.layers.dp_attention"

_FUNCTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    # Axis: (module, function for the rank, function for the size), the first that answers.
    "tp": ((_STATE, "get_tensor_model_parallel_rank", "get_tensor_model_parallel_world_size"),),
    "pp": ((_STATE, "get_pipeline_model_parallel_rank", "get_pipeline_model_parallel_world_size"),),
    "attn_tp": (
        (_ATTENTION, "get_attention_tp_rank", "get_attention_tp_size"),
        (_STATE, "get_attn_tensor_model_parallel_rank", "get_attn_tensor_model_parallel_world_size"),
    ),
    "attn_dp": ((_ATTENTION, "get_attention_dp_rank", "get_attention_dp_size"),),
    "attn_cp": (
        (_ATTENTION, "get_attention_cp_rank", "get_attention_cp_size"),
        (_STATE, "get_attn_context_model_parallel_rank", "get_attn_context_model_parallel_world_size"),
    ),
    "moe_ep": ((_STATE, "get_moe_expert_parallel_rank", "get_moe_expert_parallel_world_size"),),
    "moe_tp": ((_STATE, "get_moe_tensor_parallel_rank", "get_moe_tensor_parallel_world_size"),),
    "moe_dp": ((_STATE, "get_moe_data_parallel_rank", "get_moe_data_parallel_world_size"),),
}


def initialised() -> bool:
    """Whether SGLang has built its process groups: before that, ranks are not known."""
    state = sys.modules.get(_STATE)
    return state is not None and getattr(state, "_TP", None) is not None


def parallel_axes() -> Parallel:
    """Axis name to ``(rank, size)``; an axis that this release does not know is left out."""
    axes: Parallel = {}
    context = _context()
    for axis, functions in _FUNCTIONS.items():
        place = _from_context(context, axis)
        for module, rank, size in functions:
            place = place or _from_functions(module, rank, size)
        if place is not None:
            axes[axis] = place
    if "tp" in axes:
        _complete(axes)
    replica = replica_place(context, axes)
    if replica is not None:
        axes["dp"] = replica
    return axes


def _complete(axes: Parallel) -> None:
    """Fill axes that a release has no function for from those that it has."""
    tp_rank, tp_size = axes["tp"]
    for axis in ("attn_cp", "moe_ep", "moe_dp", "attn_dp", "pp"):
        axes.setdefault(axis, (0, 1))
    inner = axes["attn_dp"][1] * axes["attn_cp"][1]
    if tp_size % inner == 0:
        attention_size = tp_size // inner
        axes.setdefault("attn_tp", (tp_rank % attention_size, attention_size))
    experts = axes["moe_ep"][1] * axes["moe_dp"][1]
    if tp_size % experts == 0:
        moe_size = tp_size // experts
        axes.setdefault("moe_tp", (tp_rank % moe_size, moe_size))


def replica_place(context: Any, axes: Parallel) -> tuple[int, int] | None:
    """``(rank, size)`` among whole-model replicas (``--dp`` without data-parallel attention), None without."""
    if axes.get("attn_dp", (0, 1))[1] > 1:
        return None
    size = _server_setting("dp_size")
    if not isinstance(size, int) or size <= 1:
        return (0, 1)
    rank = _attribute(context, "dp_rank")
    if not isinstance(rank, int):
        rank = _replica_of_process_title()
    return None if rank is None else (rank, size)


def _replica_of_process_title() -> int | None:
    """The replica number from the title that SGLang gives its scheduler processes (``…_DP1_TP0``).

    Releases before the runtime context keep it nowhere else where the model runs.
    """
    module = sys.modules.get("setproctitle")
    if module is None:
        return None
    for part in str(module.getproctitle()).split("_"):
        if part.startswith("DP") and part[2:].isdigit():
            return int(part[2:])
    return None


def _context() -> Any:
    module = sys.modules.get("sglang.srt.runtime_context")
    return None if module is None else quietly(module.get_parallel)


def _from_context(context: Any, axis: str) -> tuple[int, int] | None:
    rank, size = _attribute(context, f"{axis}_rank"), _attribute(context, f"{axis}_size")
    if type(rank) is int and type(size) is int and 0 <= rank < size:
        return rank, size
    return None


def _attribute(source: Any, name: str) -> Any:
    return None if source is None else quietly(lambda: getattr(source, name))


def _from_functions(module_name: str, rank_name: str, size_name: str) -> tuple[int, int] | None:
    module = sys.modules.get(module_name)
    rank, size = getattr(module, rank_name, None), getattr(module, size_name, None)
    if rank is None or size is None:
        return None
    place: tuple[int, int] | None = quietly(lambda: (int(rank()), int(size())))
    return place


def _server_setting(name: str) -> Any:
    """A server argument, wherever this release keeps them."""
    for module_name, function in (
        ("sglang.srt.server_args", "get_global_server_args"),
        ("sglang.srt.runtime_context", "get_server_args"),
    ):
        getter = getattr(sys.modules.get(module_name), function, None)
        if getter is not None:
            arguments = quietly(getter)
            if getattr(arguments, name, None) is not None:
                return getattr(arguments, name)
    return None

"""Models of Megatron-core: what a module is called in the whole model, of which each rank has some layers and experts,
and how what it gives is split over ranks.

Nothing is imported: where Megatron-core was not, no model is one of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

_CORE = "megatron.core"
_AXES = ("tp", "cp", "dp")
_COLUMN = ("ColumnParallelLinear", "TEColumnParallelLinear", "TELayerNormColumnParallelLinear")
_ROW = ("RowParallelLinear", "TERowParallelLinear")
_OF_HIDDEN = (
    "LanguageModelEmbedding",
    "BaseTransformerLayer",
    "TransformerBlock",
    "MultiTokenPredictionLayer",
    "Attention",
    "MLP",
    "BaseMoELayer",
    "IdentityOp",
    "MambaStack",
    "MambaLayer",
    "MambaMixer",
)
"""Classes whose tensors of three dimensions are sequence, batch and hidden dimension, whole but for the sequence."""
_CORE_ATTENTION = ("DotProductAttention", "TEDotProductAttention")
_OF_SCORES = ("FusedScaleMaskSoftmax",)
_TIED = "embedding.word_embeddings.weight"


def whole_model(model: Any) -> WholeModel | None:
    """What is known of a model that Megatron-core's modules are part of; None of any other."""
    if _CORE not in sys.modules or not hasattr(model, "modules"):
        return None
    modules = list(model.modules())
    return WholeModel(modules) if any(map(_is_of_core, modules)) else None


class WholeModel:
    """The names and dims of the part of a model that this rank has."""

    def __init__(self, modules: list[Any]) -> None:
        from dumper.adapters.megatron import MegatronAdapter

        axes = MegatronAdapter().parallel()
        self._sizes = {axis: size for axis, (_, size) in axes.items()}
        config = next((found for one in modules if (found := getattr(one, "config", None)) is not None), None)
        self._sequence_parallel = bool(getattr(config, "sequence_parallel", False))
        self._gated = bool(getattr(config, "gated_linear_unit", False))
        self._first_expert = {
            id(held): axes.get("ep", (0, 1))[0] * one.num_local_experts
            for one in modules
            if (held := getattr(one, "local_experts", None)) is not None
            and isinstance(getattr(one, "num_local_experts", None), int)
        }

    def name_of(self, parent: Any, name: str, child: Any) -> str:
        """The name of a module under its parent: layers of all stages are counted through, experts of all ranks."""
        if not name.isdecimal():
            return name
        first = self._first_expert.get(id(parent))
        if first is not None:
            return str(first + int(name))
        number: Any = getattr(child, "layer_number", None)
        counted = isinstance(number, int) and not isinstance(number, bool) and number > 0
        return str(number - 1) if counted and _is_of_core(child) else name

    def is_part(self, module: Any) -> bool:
        """Whether what a module gives is nothing of the whole model: of one that holds layers what the last of them
        gives, which goes on to the next stage, and of a placeholder for a function that function."""
        return _is_of_core(module) and (
            getattr(module, "post_process", True) is False or _is_a(module, "IdentityFuncOp")
        )

    def is_wanted(self, path: str, pattern: str) -> bool:
        """Whether a pattern that matches a path is meant to: rows of experts lie in an order that depends on the ranks,
        so that they are recorded where the pattern names them."""
        return "experts" not in path.split(".") or "expert" in pattern

    def dims_of_output(self, path: str, module: Any, dimensions: int) -> str | None:
        """Dims of a tensor that a module gives; None where they are not known."""
        last = path.rpartition(".")[2]
        column = _is_a(module, *_COLUMN)
        split = column and not getattr(module, "gather_output", False)
        if _is_a(module, "VocabParallelEmbedding"):
            scattered = getattr(module, "reduce_scatter_embeddings", False)
            named = [self._sequence(scattered), "b[dp]", "h"] if scattered else ["b[dp]", self._sequence(False), "h"]
        elif dimensions == 1:
            named = ["h[tp]" if split else "h"]
        elif column:
            channels = ["pieces"] if self._pieces(path, module) > 1 else []
            named = [self._sequence(False), "b[dp]", *channels, "h[tp]" if split else "h"]
        elif last == "position_embeddings":
            named = ["b[dp]", self._sequence(False), "h"]
        elif _is_a(module, *_CORE_ATTENTION):
            named = [self._sequence(False), "b[dp]", "h[tp]"]
        elif last in ("q_layernorm", "k_layernorm"):
            named = [self._sequence(False), "b[dp]", "heads[tp]", "d"]
        elif _is_a(module, *_OF_SCORES) or last == "attention_dropout":
            named = ["b[dp]", "heads[tp]", "s", "keys"]
        elif _is_a(module, "Router"):
            named = [self._sequence(self._sequence_parallel), "b[dp]", "experts"]
        elif _is_a(module, *_OF_HIDDEN, *_ROW) or last.endswith(("norm", "embedding_dropout")):
            named = [self._sequence(self._sequence_parallel), "b[dp]", "h"]
        else:
            return self._with_others(["d"] * dimensions) if last == "rotary_pos_emb" else None
        return self._with_others(named) if len(named) == dimensions else None

    def with_all_dimensions(self, path: str, module: Any, args: tuple[Any, ...], value: Any) -> Any:
        """What a module gives, with the dimensions apart that it makes one of, since each is split over ranks: of a
        router sequence and batch, of an MLP with a gate the gate and what it opens."""
        given: Any = args[0] if args else None
        if _is_a(module, "Router") and value.dim() == 2 and getattr(given, "ndim", 0) == 3:
            return value.unflatten(0, given.shape[:2])
        pieces = self._pieces(path, module)
        return value.unflatten(-1, (pieces, -1)) if pieces > 1 and value.dim() == 3 else value

    def _pieces(self, path: str, module: Any) -> int:
        return 2 if self._gated and path.rpartition(".")[2] == "linear_fc1" and _is_a(module, *_COLUMN) else 1

    def dims_of_parameter(
        self, path: str, parameter: Any, given: str | None
    ) -> tuple[str | None, tuple[int, ...] | None]:
        """Dims of the parameter at a path, and the shape in which it has them where that is not its own: tensors that
        lie behind each other are split one by one. ``given`` declares axes of which nothing is known."""
        if (given or "").partition("#")[0].strip():
            return given, None
        at = getattr(parameter, "partition_dim", -1)
        split = getattr(parameter, "tensor_model_parallel", False) is True and 0 <= at < parameter.dim()
        axes = _AXES if getattr(parameter, "allreduce", True) is True else ("etp", "edp")
        named = [f"d{index}" for index in range(parameter.dim())]
        shape = None
        if split:
            named[at] += f"[{axes[0]}]"
            # Some releases do not say so of a gate.
            pieces = 2 if self._gated and "linear_fc1" in path.split(".") else getattr(parameter, "partition_stride", 1)
            if pieces > 1 and parameter.shape[at] % pieces == 0:
                named.insert(at, "pieces")
                shape = *parameter.shape[:at], pieces, -1, *parameter.shape[at + 1 :]
        if getattr(parameter, "shared_embedding", False) is True:
            axes = (*axes, "pp")
        more = [one.partition(":")[0] for one in (given or "").partition("#")[2].split()]
        return self._with_others(named, (*axes, *(axis for axis in more if axis not in axes))), shape

    def name_of_parameter(self, path: str, parameter: Any) -> str:
        """The path of a parameter in the whole model: of weights that are tied, the last stage has another copy."""
        head, dot, tail = path.rpartition("output_layer.weight")
        tied = dot and not tail and getattr(parameter, "shared_embedding", False) is True
        return head + _TIED if tied else path

    def _sequence(self, split: bool) -> str:
        axes = [axis for axis, is_split in (("cp:zigzag", self._sizes.get("cp", 1) > 1), ("tp", split)) if is_split]
        return f"s[{','.join(axes)}]" if axes else "s"

    def _with_others(self, named: list[str], axes: tuple[str, ...] = _AXES) -> str:
        """Dims of some dimensions, with the axes that they do not name declared."""
        text = " ".join(f"d{at}" if name == "d" and named.count("d") > 1 else name for at, name in enumerate(named))
        told = {axis for name in named for axis in axes if f"[{axis}" in name or f",{axis}" in name}
        others = [f"{axis}:replicated" for axis in axes if axis not in told]
        return f"{text} # {' '.join(others)}" if others else text


def paths_in_whole(model: Any, known: WholeModel) -> Mapping[str, str]:
    """Of modules whose path in the whole model is another one, that path by their own."""

    def walk(module: Any, own: str, whole: str, within: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        for name, child in module._modules.items():
            if child is not None and id(child) not in within:
                paths = f"{own}{name}", f"{whole}{known.name_of(module, name, child)}"
                yield paths
                yield from walk(child, f"{paths[0]}.", f"{paths[1]}.", (*within, id(child)))

    return {own: whole for own, whole in walk(model, "", "", (id(model),)) if own != whole}


def main_gradient(parameter: Any) -> Any:
    """The gradient of a parameter; where Megatron-core has added it to a buffer, that."""
    gradient = parameter.grad
    return getattr(parameter, "main_grad", None) if gradient is None else gradient


def _is_of_core(module: Any) -> bool:
    return any(base.__module__.startswith(_CORE) for base in type(module).__mro__)


def _is_a(module: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(module).__mro__)

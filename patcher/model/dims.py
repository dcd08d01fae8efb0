"""Dims that can be guessed: how the rows of a model lie, and what well-known classes of parallel layers give."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from patcher.model.parts import ENTRIES, ModelClass, Part, class_called, classes_in, init_of, parts_of
from patcher.source.definitions import Definition, FunctionNode, find_definitions
from patcher.source.modules import ModuleFile, ModuleFinder

_BATCH = {"b", "bs", "bsz", "batch", "batch_size", "bsize"}
_SEQUENCE = {"s", "t", "l", "seq", "seqlen", "seq_len", "seq_length", "q_len", "length", "num_tokens", "tokens"}
_HIDDEN = {"hidden_states", "hidden", "h", "x", "out", "output", "attn_output", "attn_out", "final_hidden_states"}
_OF_HEADS = re.compile(r"^(q|k|v|kv|qk|query|key|value)(_|$)")


def rows_of(module: ModuleFile) -> str | None:
    """``t`` where a model takes flat tokens, ``b s`` where it takes batches of sequences, else None."""
    if module.name.startswith(("sglang.", "vllm.")):
        return "t"
    if module.name.startswith("transformers."):
        return "b s"
    votes: list[str] = []
    for path in classes_in(module.tree.body):
        for found in find_definitions(module.scope, (*path, "forward")):
            names = {argument.arg for argument in (*found.node.args.args, *found.node.args.kwonlyargs)}
            if "forward_batch" in names:
                votes.append("t")
            votes += [row for node in ast.walk(found.node) if (row := _rows_of_shape(node))]
    return votes[0] if votes and len(set(votes)) == 1 else None


def _rows_of_shape(node: ast.AST) -> str | None:
    """``batch, length, width = x.shape`` says how rows lie."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
        return None
    value = node.value.func if isinstance(node.value, ast.Call) else node.value
    if not (isinstance(value, ast.Attribute) and value.attr in ("shape", "size")):
        return None
    names = [element.id.lower() if isinstance(element, ast.Name) else "" for element in node.targets[0].elts]
    if len(names) == 3 and names[0] in _BATCH and names[1] in _SEQUENCE:
        return "b s"
    return "t" if len(names) == 2 and names[0] in _SEQUENCE else None


class DimsGuesses:
    """Guesses for the parts of the classes of one module."""

    def __init__(self, module: ModuleFile, finder: ModuleFinder) -> None:
        self._finder = finder
        self._rows = rows_of(module)
        self._sums: dict[tuple[str, tuple[str, ...]], str | None] = {}
        self._flat = _flat_classes(module, finder) if self._rows == "b s" else set()

    @property
    def hidden(self) -> str | None:
        """Dims of hidden states that every rank has whole."""
        return self._dims("h")

    def know_rows(self, model: ModelClass) -> bool:
        """Whether rows lie in a class as in the whole model, so that dims can be guessed there."""
        return model.key not in self._flat

    def of_part(self, owner: ModelClass, part: Part, value: str) -> str | None:
        """Dims of what a part of a class gives; None where that cannot be told.

        ``value`` is the name that it is assigned to, empty where it is not.
        """
        width = None if _OF_HEADS.match(part.attribute) else self._width(owner, part, value)
        if width is None and value in _HIDDEN:
            made = class_called(owner, part.call, self._finder)
            width = self._sum_of(made) if made is not None and made.module is owner.module else None
        return None if width is None else self._dims(width)

    def _sum_of(self, model: ModelClass) -> str | None:
        """The width of what a block gives: summands where its last layer leaves the sum to others."""
        if model.key not in self._sums:
            found = init_of(model, self._finder)
            rows = [part for part in parts_of(found[1]) if part.callee.endswith("RowParallelLinear")] if found else []
            self._sums[model.key] = _row_parallel(model, rows[-1].call) if rows else "h"
        return self._sums[model.key]

    @staticmethod
    def _width(owner: ModelClass, part: Part, value: str) -> str | None:
        """The last dimension of what a layer of a well-known class gives."""
        callee = part.callee
        if callee.endswith(("ParallelLinear", "ReplicatedLinear")) and not value:
            return None  # a tuple of the value and a bias
        if callee == "ColumnParallelLinear":
            return "n" if _flags(part.call).get("gather_output") else f"n[{_axis(owner)}]"
        if callee.endswith("RowParallelLinear"):
            return _row_parallel(owner, part.call)
        if callee in ("Linear", "ReplicatedLinear"):
            return "n"
        return "h" if callee.endswith("Norm") or callee in ("Embedding", "VocabParallelEmbedding") else None

    def _dims(self, width: str) -> str | None:
        return None if self._rows is None else f"{self._rows} {width}"


def _flat_classes(module: ModuleFile, finder: ModuleFinder) -> set[tuple[str, tuple[str, ...]]]:
    """The classes that make batch and sequence one dimension, ``x.view(-1, width)``, as experts do, and their parts."""
    classes = [ModelClass(module, path) for path in classes_in(module.tree.body)]
    flat: set[tuple[str, tuple[str, ...]]] = set()
    todo = [one for one in classes if any(_flattens(found.node) for found in _methods(one))]
    while todo:
        model = todo.pop()
        if model.key in flat:
            continue
        flat.add(model.key)
        init = init_of(model, finder)
        inner = [class_called(init[0], part.call, finder) for part in parts_of(init[1])] if init is not None else []
        todo += [one for one in inner if one is not None and one.module is module]
    return flat


def _methods(model: ModelClass) -> Iterator[Definition]:
    for name in ENTRIES:
        yield from find_definitions(model.module.scope, (*model.path, name))


def _flattens(function: FunctionNode) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 2:
            first = node.args[0]
            if node.func.attr in ("view", "reshape") and isinstance(first, ast.UnaryOp) and ast.unparse(first) == "-1":
                return True
    return False


def _row_parallel(owner: ModelClass, call: ast.Call) -> str | None:
    says = next((keyword.value for keyword in call.keywords if keyword.arg == "reduce_results"), ast.Constant(True))
    if not isinstance(says, ast.Constant):
        return None  # who makes the model decides it
    if says.value is not False:
        return "h"
    return f"h[{_axis(owner)}:partial]"


def _axis(owner: ModelClass) -> str:
    """The axis over which a layer is split: SGLang spreads attention over fewer ranks than the rest."""
    return "attn_tp" if owner.module.name.startswith("sglang.") and "Attention" in owner.path[-1] else "tp"


def _flags(call: ast.Call) -> dict[str, bool]:
    return {
        keyword.arg: keyword.value.value
        for keyword in call.keywords
        if keyword.arg is not None and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)
    }

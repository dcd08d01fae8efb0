"""Loops over lists of layers: ``for layer in self.layers``, with ``enumerate``, slices, ``zip``, or by index."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from patcher.model.parts import counter
from patcher.source.definitions import FunctionNode, all_statements


@dataclass(frozen=True)
class LayerLoop:
    """A loop variable that goes through the parts of a list."""

    variable: str
    attribute: str
    """Of ``self``: the list."""
    number: str | None = None
    """Expression of the number of the part in the list, in the loop."""


def loops_in(function: FunctionNode) -> dict[str, LayerLoop]:
    """The layer loops of a function by their variables; what goes through several lists is none."""
    found: dict[str, LayerLoop] = {}
    several: set[str] = set()
    for node in all_statements(function.body):
        if not isinstance(node, ast.For):
            continue
        for loop in (*_through(node.target, node.iter), *_by_index(node)):
            if found.setdefault(loop.variable, loop).attribute != loop.attribute:
                several.add(loop.variable)
    return {name: loop for name, loop in found.items() if name not in several}


def called_by_index(callee: str) -> LayerLoop | None:
    """``self.layers[i]`` that is called where it stands."""
    found = re.fullmatch(r"self\.(\w+)\[([\w.+ -]*[A-Za-z_][\w.+ -]*)\]", callee)
    return None if found is None else LayerLoop(callee, found[1], found[2].strip())


def _through(target: ast.expr, iterated: ast.expr) -> Iterator[LayerLoop]:
    if isinstance(target, ast.Name):
        listed = _list_of(iterated)
        if listed is not None:
            yield LayerLoop(target.id, listed[0])
        return
    called = iterated.func.id if isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Name) else ""
    if not (isinstance(target, ast.Tuple) and isinstance(iterated, ast.Call) and iterated.args):
        return
    if called == "enumerate" and len(target.elts) == 2:
        number = counter(target, iterated)
        for loop in _through(target.elts[1], iterated.args[0]):
            yield LayerLoop(loop.variable, loop.attribute, _counted(number, iterated))
    elif called == "zip":
        for element, argument in zip(target.elts, iterated.args, strict=False):
            yield from _through(element, argument)


def _counted(number: str | None, enumerated: ast.Call) -> str | None:
    """The number of the part in the whole list, of which a slice may be counted."""
    listed = _list_of(enumerated.args[0])
    start = listed[1] if listed is not None else None
    counts_from_elsewhere = len(enumerated.args) > 1 or bool(enumerated.keywords)
    if number is None or start is None or counts_from_elsewhere:
        return number
    return f"{number} + {start}"


def _by_index(node: ast.For) -> Iterator[LayerLoop]:
    """``for i in range(...): layer = self.layers[i]``."""
    number = counter(node.target, node.iter)
    for statement in ast.walk(node) if number is not None else ():
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            continue
        value = statement.value
        if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Name) and value.slice.id == number:
            listed = _list_of(value.value)
            if listed is not None:
                yield LayerLoop(statement.targets[0].id, listed[0], number)


def _list_of(node: ast.expr) -> tuple[str, str | None] | None:
    """Attribute of ``self`` that is gone through, and the expression of where that begins, if not at its start."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr, None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        listed = _list_of(node.value)
        lower = node.slice.lower
        return None if listed is None else (listed[0], None if lower is None else ast.unparse(lower))
    if isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("list", "tuple", "islice", "cast"):
            listed = _list_of(node.args[-1 if called == "cast" else 0])
            start = ast.unparse(node.args[1]) if called == "islice" and len(node.args) > 2 else None
            return None if listed is None else (listed[0], start if start != "None" else None)
    return None

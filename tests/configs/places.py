"""Where the taps of a config come to lie in a rewritten module, read from the new source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from patcher.check import Checked

TAPS = "__tensortap_taps__"
RETURN = "__tensortap_return__"


@dataclass(frozen=True)
class Place:
    """One tap in the new source."""

    tap: str
    function: str
    """Module and qualified name of the innermost function that holds the tap."""
    previous: str
    """The statement before it, in one normal form: ``ast.unparse``. What is returned, for a tap at a return."""
    following: str
    """The statement after it; empty at the end of a block."""


def places(checked: Checked) -> list[Place]:
    """All taps that record values, in the order of the sources."""
    found: list[Place] = []
    for module in checked.modules:
        rewritten = module.rewritten
        if rewritten is None:
            continue
        names = [tap.name for tap in rewritten.taps]
        tree = ast.parse(rewritten.text)
        found += [
            Place(names[number], f"{module.patch.module}.{function}", *_neighbours(block, position))
            for function, block in _blocks(tree, "")
            for position, statement in enumerate(block)
            if (number := _tap_number(statement)) is not None
        ]
    return found


def function_body(checked: Checked, qualified_name: str) -> list[str]:
    """The statements of one function in the new source, each as ``ast.unparse`` writes it, without the docstring."""
    for module in checked.modules:
        name = qualified_name.removeprefix(f"{module.patch.module}.")
        if module.rewritten is not None and name != qualified_name:
            for found, block in _blocks(ast.parse(module.rewritten.text), ""):
                if found == name:
                    return [ast.unparse(one) for one in block if not _is_text(one)]
    raise LookupError(qualified_name)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _blocks(node: ast.AST, name: str) -> Iterator[tuple[str, list[ast.stmt]]]:
    for _, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        if children and all(isinstance(child, ast.stmt) for child in children):
            yield name, children
        for child in children:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _blocks(child, f"{name}.{child.name}".lstrip("."))
            elif isinstance(child, ast.AST):
                yield from _blocks(child, name)


def _tap_number(statement: ast.stmt) -> int | None:
    if isinstance(statement, ast.If) and isinstance(statement.test, ast.Attribute) and statement.test.attr == "on":
        tap = statement.test.value
        if isinstance(tap, ast.Subscript) and isinstance(tap.value, ast.Name) and tap.value.id == TAPS:
            assert isinstance(tap.slice, ast.Constant)
            return int(tap.slice.value)
    return None


def _neighbours(block: list[ast.stmt], position: int) -> tuple[str, str]:
    before = [statement for statement in block[:position] if _tap_number(statement) is None]
    after = [statement for statement in block[position + 1 :] if _tap_number(statement) is None]
    previous = ast.unparse(before[-1]) if before else ""
    return previous.removeprefix(f"{RETURN} = "), ast.unparse(after[0]) if after else ""

"""Functions that inserted code would turn into generators, whose calls run nothing."""

from __future__ import annotations

import ast

from patcher.match.function_text import FunctionBuffer

Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def made_generator(buffer: FunctionBuffer, unit: Function) -> tuple[str, str]:
    """The edit that puts a ``yield`` into ``unit``, or into a function in it, which has none in the file, and why that
    is wrong; two empty strings where there is none. The buffer is Python."""
    if not any("yield" in line.text for line in buffer.lines if line.owner):
        return "", ""
    before = _yields(unit)
    indented = buffer.lines[0].text[:1].isspace()
    tree = ast.parse("if 1:\n" + buffer.text if indented else buffer.text)
    statements = tree.body[0].body if isinstance(tree.body[0], ast.If) else tree.body
    for statement in statements:
        for path, number in _yields(statement).items() if isinstance(statement, Function) else ():
            line = buffer.lines[(number or 1) - (2 if indented else 1)]
            if number and before.get(path, number) is None and line.owner:
                return line.owner, f"'yield' would make a generator of the function: {line.text.strip()!r}"
    return "", ""


def _yields(function: Function, inside: str = "") -> dict[str, int | None]:
    """By name, a function and those in it: the first line that yields, None where none does."""
    path = f"{inside}.{function.name}"
    found: dict[str, int | None] = {path: None}
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function):
            found |= _yields(node, path)
        elif isinstance(node, (ast.Yield, ast.YieldFrom)):
            found[path] = min(found[path] or node.lineno, node.lineno)
        elif not isinstance(node, _SCOPES):
            waiting.extend(ast.iter_child_nodes(node))
    return found

"""Finding the definitions of a dotted name in a module's syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_ACCESSORS = {"setter": "setter", "fset": "setter", "deleter": "deleter", "fdel": "deleter"}
_GETTERS = ("getter", "fget")


@dataclass(frozen=True)
class Definition:
    """One definition of a function. The unit is the outermost function that holds it, itself perhaps."""

    node: FunctionNode
    unit: FunctionNode
    inner: tuple[str, ...]
    """Names from the unit down to the function, the unit's own first."""
    ordinal: int
    """Its number among the definitions of these names in the unit, from 0."""


class Scope:
    """The classes and functions that are defined directly in a body, by name, in source order; found once."""

    def __init__(self, body: Sequence[ast.stmt]) -> None:
        self._named: dict[str, list[ast.ClassDef | FunctionNode]] = {}
        self._inner: dict[int, Scope] = {}
        for node in statements_in(body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._named.setdefault(node.name, []).append(node)

    def named(self, name: str) -> Sequence[ast.ClassDef | FunctionNode]:
        """All definitions of a name."""
        return self._named.get(name, ())

    def inside(self, node: ast.ClassDef | FunctionNode) -> Scope:
        """The scope of one of them."""
        if id(node) not in self._inner:
            self._inner[id(node)] = Scope(node.body)
        return self._inner[id(node)]


def find_definitions(scope: Scope, path: Sequence[str]) -> list[Definition]:
    """All definitions of the function at ``path``; several where ``if`` and ``else`` define one each.

    Of a property, the getter; ``name.setter`` and ``name.deleter`` say the others. Overload stubs are left out.
    """
    path, accessor = _split_accessor(path)
    found = list(_definitions(scope, tuple(path), None, ()))
    ordinals: dict[int, int] = {}
    result: list[Definition] = []
    for node, unit, inner in found:
        ordinal = ordinals.get(id(unit), 0)
        ordinals[id(unit)] = ordinal + 1
        if _accessor(node) == accessor and not _is_overload(node):
            result.append(Definition(node, unit, inner, ordinal))
    return result


def iter_functions(body: Sequence[ast.stmt], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all functions in a body, nested ones included."""
    for node in statements_in(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            accessor = _accessor(node)
            yield (*prefix, node.name, accessor) if accessor else (*prefix, node.name)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from iter_functions(node.body, (*prefix, node.name))


def functions_within(unit: FunctionNode) -> list[FunctionNode]:
    """All functions defined inside a function, at any depth."""
    return [node for node in all_statements(unit.body) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def find_class(scope: Scope, path: Sequence[str]) -> ast.ClassDef | None:
    """The class at ``path``, the last one if there are several."""
    for name in path[:-1]:
        outer = scope.named(name)
        if not outer:
            return None
        scope = scope.inside(outer[-1])
    found = scope.named(path[-1])
    return found[-1] if found and isinstance(found[-1], ast.ClassDef) else None


def all_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at any depth, those of functions and classes included; expressions are not looked into."""
    for node in statements_in(body):
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from all_statements(node.body)


def statements_in(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of one scope: blocks such as ``if`` and ``try`` are entered, functions and classes not."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for name in ("body", "orelse", "finalbody"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                yield from statements_in(inner)
        for handler in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            yield from statements_in(handler.body)


def _definitions(
    scope: Scope, path: tuple[str, ...], unit: FunctionNode | None, inner: tuple[str, ...]
) -> Iterator[tuple[FunctionNode, FunctionNode, tuple[str, ...]]]:
    for node in scope.named(path[0]):
        here = unit if unit is not None or isinstance(node, ast.ClassDef) else node
        names = (*inner, node.name) if here is not None else ()
        if len(path) > 1:
            yield from _definitions(scope.inside(node), path[1:], here, names)
        elif not isinstance(node, ast.ClassDef):
            assert here is not None
            yield node, here, names


def _split_accessor(path: Sequence[str]) -> tuple[Sequence[str], str]:
    if len(path) > 1 and path[-1] in _ACCESSORS:
        return path[:-1], _ACCESSORS[path[-1]]
    if len(path) > 1 and path[-1] in _GETTERS:
        return path[:-1], ""
    return path, ""


def _accessor(node: FunctionNode) -> str:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Attribute) and decorator.attr in ("setter", "deleter"):
            return decorator.attr
    return ""


def _is_overload(node: FunctionNode) -> bool:
    return any(
        (decorator.id if isinstance(decorator, ast.Name) else getattr(decorator, "attr", "")) == "overload"
        for decorator in node.decorator_list
    )

"""Finding the live functions of a module and exchanging their code."""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Iterator
from typing import Any

from patcher.errors import EditError
from patcher.load.compile import CodeKey
from patcher.rewrite.module import RewrittenModule

_MAX_DEPTH = 8


def function_keys(rewritten: RewrittenModule) -> dict[CodeKey, bool]:
    """Keys of the rewritten functions; False for those nested in others, which may not be alive yet."""
    keys: dict[CodeKey, bool] = {}
    for function in rewritten.functions:
        keys[CodeKey(function.node.name, function.first)] = True
        for path_line, name in function.nested:
            keys[CodeKey(name, path_line)] = False
    return keys


def codes_by_key(code: types.CodeType) -> dict[CodeKey, types.CodeType]:
    """A code object and all code objects nested in it."""
    found = {CodeKey.of(code): code}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for key, inner in codes_by_key(constant).items():
                found.setdefault(key, inner)
    return found


def find_live(module: types.ModuleType, keys: set[CodeKey]) -> list[types.FunctionType]:
    """All functions that exist now, were defined in the module, and have one of these keys."""
    names = module.__dict__
    found: dict[int, types.FunctionType] = {}
    # Objects in the collector's permanent generation are not listed, so names are followed too.
    for candidate in (*gc.get_objects(), *_reachable(module)):
        if type(candidate) is not types.FunctionType or candidate.__globals__ is not names:
            continue
        if CodeKey.of(candidate.__code__) in keys:
            found[id(candidate)] = candidate
    return list(found.values())


def swap_code(function: types.FunctionType, code: types.CodeType, module: str) -> None:
    """Exchange a function's code. Raises EditError when the new code needs variables it has not captured."""
    if function.__code__ is code:
        return
    missing = [name for name in code.co_freevars if name not in function.__code__.co_freevars]
    if missing or len(code.co_freevars) != len(function.__code__.co_freevars):
        what = "super()" if missing == ["__class__"] else ", ".join(missing) or "fewer variables"
        raise EditError(
            f"{module}.{function.__qualname__}: the inserted code uses {what}, which the live function has not "
            "captured; patch it at import instead (python -m patcher run)"
        )
    function.__code__ = code


def _reachable(module: types.ModuleType) -> Iterator[Any]:
    seen: set[int] = set()
    stack: list[tuple[Any, int]] = [(value, 0) for value in list(module.__dict__.values())]
    while stack:
        value, depth = stack.pop()
        if id(value) in seen or depth > _MAX_DEPTH:
            continue
        seen.add(id(value))
        yield value
        stack.extend((inner, depth + 1) for inner in _parts(value, module.__name__))


def _parts(value: Any, module: str) -> list[Any]:
    if isinstance(value, type):
        return list(value.__dict__.values()) if value.__module__ == module else []
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.partial):
        return [value.func]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return [*cells, getattr(value, "__wrapped__", None)]
    return [getattr(value, "__dict__", {}).get(name) for name in ("func", "__wrapped__")]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False

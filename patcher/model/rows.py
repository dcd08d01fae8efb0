"""Values in a method whose rows are not the tokens of the pass: of the whole cache, or with heads laid out as rows."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from patcher.source.definitions import FunctionNode

_CACHE = re.compile(r"cache|past_key_value", re.IGNORECASE)
_OTHER_SIDE = ("key_value_states",)
_SHAPING = ("reshape", "view")


def of_whole_cache(methods: Mapping[str, FunctionNode]) -> dict[str, frozenset[str]]:
    """By method of a class, what it calls with what a cache gave back: the tokens of all passes so far.

    ``k, v = past_key_values.update(k, v, layer)`` gives all of them; from there names are followed into calls as they
    are, and into other methods of the class.
    """
    given: dict[str, set[str]] = {name: set() for name in methods}
    """Parameters that hold the whole cache."""
    found: dict[str, set[str]] = {name: set() for name in methods}
    todo = list(methods)
    while todo:
        name = todo.pop()
        function = methods[name]
        updates = _updates(function)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            cached = given[name] | {one for one, line in updates.items() if call.lineno > line}
            holding = [at for at, value in enumerate(call.args) if isinstance(value, ast.Name) and value.id in cached]
            callee = ast.unparse(call.func)
            if not holding or not callee.startswith("self."):
                continue
            inner = callee.removeprefix("self.")
            if inner not in methods:
                found[name].add(callee)
                continue
            parameters = [argument.arg for argument in methods[inner].args.args][1:]
            more = {parameters[at] for at in holding if at < len(parameters)} - given[inner]
            if more:
                given[inner] |= more
                todo.append(inner)
    return {name: frozenset(callees) for name, callees in found.items() if callees}


def _updates(function: FunctionNode) -> dict[str, int]:
    """Names that are what a cache holds after it was updated, and from which line on."""
    found: dict[str, int] = {}
    for node in ast.walk(function):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        callee = node.value.func
        if isinstance(callee, ast.Attribute) and callee.attr == "update" and _CACHE.search(ast.unparse(callee.value)):
            for target in node.targets:
                elements = target.elts if isinstance(target, ast.Tuple) else [target]
                found |= {element.id: node.end_lineno or 0 for element in elements if isinstance(element, ast.Name)}
    return found


def of_other_tokens(function: FunctionNode) -> dict[str, str]:
    """What a cross-attention calls with the tokens of the other side, and the condition under which they are its own.

    ``x = key_value_states if is_cross_attention else hidden_states``: an attention that is either is tapped as the one.
    """
    parameters = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
    other = next((name for name in _OTHER_SIDE if name in parameters), None)
    if other is None:
        return {}
    names = {other}
    for node in ast.walk(function):
        chosen = node.value if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if chosen is None or not isinstance(target, ast.Name):
            continue
        if any(isinstance(one, ast.Name) and one.id == other for one in (chosen.body, chosen.orelse)):
            names.add(target.id)
    return {
        ast.unparse(call.func): f"{other} is None"
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and any(isinstance(one, ast.Name) and one.id in names for one in call.args)
    }


def unflattened(function: FunctionNode, callee: str, name: str) -> str | None:
    """The statement that gives ``name`` its shape again after ``name = callee(...)``; None where there is none.

    ``x = x.reshape(-1, width)``, ``x = self.norm(x)``, ``x = x.reshape(shape)``: between them heads are rows as well.
    """
    for block in _blocks(function):
        for at, statement in enumerate(block[:-1]):
            call = _assigned_call(statement, name)
            if call is None or ast.unparse(call.func) != callee or not call.args:
                continue
            argument = call.args[0]
            name_given = argument.id if isinstance(argument, ast.Name) else ""
            shapes = [shape for before in block[:at] if (shape := _shaping(before, name_given)) is not None]
            flat = shapes[-1:] == ["-1"]
            after = _shaping(block[at + 1], name)
            if flat and after is not None and after != "-1":
                text = ast.unparse(block[at + 1])
                return text if ast.unparse(function).count(text) == 1 else None
    return None


def _blocks(function: FunctionNode) -> list[list[ast.stmt]]:
    nested = (getattr(node, part, None) for node in ast.walk(function) for part in ("body", "orelse"))
    return [block for block in nested if isinstance(block, list) and block and isinstance(block[0], ast.stmt)]


def _assigned_call(statement: ast.stmt, name: str) -> ast.Call | None:
    if not (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)):
        return None
    target = statement.targets[0]
    return statement.value if isinstance(target, ast.Name) and target.id == name else None


def _shaping(statement: ast.stmt, name: str) -> str | None:
    """The first argument of ``name = name.reshape(...)``; None for any other statement."""
    call = _assigned_call(statement, name)
    if call is None or not (isinstance(call.func, ast.Attribute) and call.func.attr in _SHAPING and call.args):
        return None
    of = call.func.value
    return ast.unparse(call.args[0]) if isinstance(of, ast.Name) and of.id == name else None

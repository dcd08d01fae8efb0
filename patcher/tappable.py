"""The places of a function that a tap can go to."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import libcst as cst

from patcher.errors import EditError, TargetError
from patcher.match.diagnostics import one_line
from patcher.match.function_text import FunctionBuffer
from patcher.match.pattern import parse_pattern
from patcher.match.search import Site, find_pattern, find_returns
from patcher.match.statements import FunctionIndex, Statement, index_function, start_of
from patcher.rewrite.module import function_lines
from patcher.source.definitions import Definition, find_definitions
from patcher.source.modules import ModuleFile

_COLLECTIVE = re.compile(
    r"(all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|all2all|broadcast|dp_gather|dp_scatter)", re.IGNORECASE
)
_UNINTERESTING = frozenset(dir(builtins))
PlaceKind = Literal["entry", "submodule", "collective", "call", "return"]


@dataclass(frozen=True)
class TappablePlace:
    """One place, as an edit would name it."""

    line: int
    kind: PlaceKind
    form: Literal["at", "match", "wrap"]
    pattern: str
    values: tuple[str, ...] = ()
    """Names that hold the value afterwards."""
    callee: str = ""
    count: int = 1
    """How often the pattern is found in the function."""
    nth: int | None = None
    """Which of them it is, where not all of them are to be tapped in this way."""


def function_index(module: ModuleFile, path: Sequence[str]) -> FunctionIndex:
    """Parse one function of a module. Raises TargetError when it does not exist."""
    definitions = find_definitions(module.scope, path)
    if not definitions:
        raise TargetError(f"{module.name}: there is no function {'.'.join(path)!r}")
    return definition_index(module, definitions[0])


def definition_index(module: ModuleFile, found: Definition) -> FunctionIndex:
    """Parse one definition of a function."""
    first, last = function_lines(found.unit)
    view = FunctionBuffer.from_source(module.source.split("\n"), first, last).view()
    return index_function(view, view.find_function(found.inner, found.ordinal))


def tappable_places(
    index: FunctionIndex, wanted: Callable[[PlaceKind, str], bool] = lambda kind, callee: True
) -> list[TappablePlace]:
    """All places in source order: the entry, calls whose value can be recorded, the returns.

    ``wanted`` says of which kinds and callees; a call that nobody wants costs next to nothing.
    """
    first = index.body.statements[0]
    places = [TappablePlace(_line(index, first.node), "entry", "at", "entry", _parameters(index.function))]
    seen: set[tuple[str, int | None]] = set()
    calls = [
        _Call(node, statement, kind, callee)
        for node, statement in index.expressions
        if isinstance(node, cst.Call)
        for kind, callee in [_kind_of(node, statement)]
        if callee not in _UNINTERESTING and wanted(kind, callee)
    ]
    for call in sorted(calls, key=lambda call: start_of(index.view, call.node)):
        place = _call_place(index, call)
        if place is not None and (place.pattern, place.nth) not in seen:
            seen.add((place.pattern, place.nth))
            places.append(place)
    places += [TappablePlace(_line(index, site.first.node), "return", "at", "return") for site in find_returns(index)]
    return places


def self_methods(index: FunctionIndex) -> list[str]:
    """Names of the attributes of ``self`` that the function calls."""
    names = [
        node.func.attr.value
        for node, _ in index.expressions
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and _is_self(node.func.value)
    ]
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class _Call:
    """A call, the statement that it is in, and what is called."""

    node: cst.Call
    statement: Statement
    kind: PlaceKind
    callee: str


def _kind_of(node: cst.Call, statement: Statement) -> tuple[PlaceKind, str]:
    """The kind of place that a call is, and what is called, as a pattern says it."""
    callee, last = _callee(node)
    kind: PlaceKind = "call"
    if _COLLECTIVE.search(last):
        kind = "collective"
    elif re.fullmatch(r"self\.\w+(\[.+\])?", callee) or (
        re.fullmatch(r"self\.\w+\.\w+", callee) and _passes_on(node, _targets(statement, node))
    ):
        kind = "submodule"
    return kind, callee


def _call_place(index: FunctionIndex, call: _Call) -> TappablePlace | None:
    node, statement, kind, callee = call.node, call.statement, call.kind, call.callee
    targets = _targets(statement, node)
    wildcard = f"{callee}(...)" if node.args else f"{callee}()"
    form: Literal["match", "wrap"] = "match" if targets else "wrap"
    pattern = f"{_target_text(statement)} = {wildcard}" if targets else wildcard
    values = targets
    if not targets and kind == "collective" and isinstance(statement.node, cst.Expr) and node.args:
        # A collective that works in place: what it was given holds the result.
        argument = one_line(index.view.text_of(node.args[0].value), 100)
        form, values = "match", (argument,)
    sites = _sites(index, pattern)
    here = [number for number, site in enumerate(sites, start=1) if _is_at(site, node, statement)]
    if not here:
        return None
    nth = None
    if form == "wrap" and any(_targets(site.first, site.node) for site in sites):
        # Other calls of it are assigned, and are tapped by their names.
        nth = here[0]
    return TappablePlace(_line(index, node), kind, form, pattern, values, callee, len(sites), nth)


def _callee(call: cst.Call) -> tuple[str, str]:
    """What is called, as a pattern says it, and the last name in it (none for other expressions than dotted names)."""
    text = _dotted(call.func) or _code(call.func)
    if "\n" in text:
        text = " ".join(text.split())
    if isinstance(call.func, cst.Attribute):
        return text, call.func.attr.value
    return text, call.func.value if isinstance(call.func, cst.Name) else ""


def _dotted(node: cst.CSTNode) -> str:
    """``a.b.c`` as it is written, empty for anything else; writing a node out takes much longer."""
    if isinstance(node, cst.Name):
        return "" if node.lpar else node.value
    if isinstance(node, cst.Attribute) and not node.lpar:
        owner = _dotted(node.value)
        tight = _is_nothing(node.dot.whitespace_before) and _is_nothing(node.dot.whitespace_after)
        return f"{owner}.{node.attr.value}" if owner and tight and not node.attr.lpar else ""
    return ""


def _is_nothing(space: cst.BaseParenthesizableWhitespace) -> bool:
    return isinstance(space, cst.SimpleWhitespace) and not space.value


def _code(node: cst.CSTNode) -> str:
    """The code of an expression, in the brackets that it stands in."""
    return cst.Module([]).code_for_node(node).strip()


def _sites(index: FunctionIndex, pattern: str) -> list[Site]:
    try:
        return find_pattern(index, parse_pattern(pattern))
    except EditError:
        return []


def _is_at(site: Site, node: cst.Call, statement: Statement) -> bool:
    return site.expression is node or (site.expression is None and site.first is statement)


def _targets(statement: Statement, call: cst.CSTNode) -> tuple[str, ...]:
    """The plain names that an assignment of just this call binds; empty for anything else."""
    node = statement.node
    if isinstance(node, cst.AnnAssign):
        target = node.target
    elif isinstance(node, cst.Assign) and len(node.targets) == 1:
        target = node.targets[0].target
    else:
        return ()
    if node.value is not call:
        return ()
    items = [element.value for element in target.elements] if isinstance(target, cst.Tuple) else [target]
    names = [item.value for item in items if isinstance(item, cst.Name)]
    return tuple(name for name in names if name.strip("_")) if len(names) == len(items) else ()


def _passes_on(call: cst.Call, targets: Sequence[str]) -> bool:
    """Whether a call takes and gives back the same variables, as a part of a model's data flow does."""
    given = {argument.value.value for argument in call.args if isinstance(argument.value, cst.Name)}
    return bool(given & set(targets))


def _target_text(statement: Statement) -> str:
    node = statement.node
    assert isinstance(node, (cst.Assign, cst.AnnAssign))
    target = node.target if isinstance(node, cst.AnnAssign) else node.targets[0].target
    return " ".join(_code(target).split())


def _parameters(function: cst.FunctionDef) -> tuple[str, ...]:
    parameters = function.params
    every = (*parameters.posonly_params, *parameters.params, *parameters.kwonly_params)
    return tuple(parameter.name.value for parameter in every if parameter.name.value not in ("self", "cls"))


def _line(index: FunctionIndex, node: cst.CSTNode) -> int:
    return index.view.line_at(start_of(index.view, node)[0]).origin


def _is_self(node: cst.BaseExpression) -> bool:
    return isinstance(node, cst.Name) and node.value == "self"

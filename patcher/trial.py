"""Trying a pattern on a module, a class, a function or a file: where it matches, and else what comes nearest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from patcher.errors import TargetError
from patcher.match.diagnostics import likeness, line_of, one_line
from patcher.match.pattern import names_in, parse_pattern
from patcher.match.search import find_pattern
from patcher.source.definitions import Definition, find_definitions
from patcher.source.locate import functions_of
from patcher.source.modules import ModuleFile, ModuleFinder
from patcher.tappable import definition_index

_SHOWN = 3
_COMPARED = 40
"""Statements that are compared in full: those that share the most runs of three characters with the pattern."""
_ALIKE = 0.3


@dataclass(frozen=True)
class Place:
    """A piece of code in a function."""

    file: str
    line: int
    function: str
    """Dotted name of the function, as a target names it; of functions in functions, the outermost."""
    code: str
    """On one line."""


@dataclass(frozen=True)
class Match(Place):
    """A place that matches."""

    captures: dict[str, str]
    """Name, without ``$``, to the code that it stands for."""


@dataclass(frozen=True)
class Trial:
    """Where a pattern matches; where it does not at all, what comes nearest, best first."""

    matches: tuple[Match, ...]
    nearest: tuple[Place, ...] = ()


def try_pattern(pattern: str, target: str, finder: ModuleFinder) -> Trial:
    """Look for a pattern as an edit does.

    Raises EditError for a pattern that is none, TargetError for a target that does not exist.
    """
    parsed = parse_pattern(pattern)
    needed = names_in(parsed.text)
    found: list[Match] = []
    functions = list(_functions(target, finder))
    for module, path, definition in functions:
        if not needed <= names_in(_text(module, definition.unit)):
            continue
        index = definition_index(module, definition)
        for site in find_pattern(index, parsed):
            captures = {name: one_line(index.view.text_of(node), 100) for name, node in site.bindings.items()}
            code = one_line(index.view.text_of(site.node), 100)
            found.append(Match(_file(module), line_of(index, site), _name(module, path), code, captures))
    return Trial(tuple(found), () if found else tuple(_nearest(parsed.text, functions)))


_Function = tuple[ModuleFile, tuple[str, ...], Definition]


def _functions(target: str, finder: ModuleFinder) -> Iterator[_Function]:
    """Every definition of every function that is meant, without those that lie within another of them."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for resolved in functions_of(target, finder):
        key = (resolved.module, resolved.path)
        if any((resolved.module, resolved.path[:count]) in seen for count in range(1, len(resolved.path) + 1)):
            continue
        seen.add(key)
        module = finder.find(resolved.module)
        if module is None:
            raise TargetError(f"{target}: its source cannot be found")
        for definition in find_definitions(module.scope, resolved.path):
            yield module, resolved.path, definition


def _nearest(pattern: str, functions: Sequence[_Function]) -> Iterator[Place]:
    pattern = re.sub(r"\$\w+", "...", pattern)
    wanted = _runs(pattern.replace("...", "\n"))
    places = [
        Place(_file(module), statement.lineno, _name(module, path), _head(module, statement))
        for module, path, definition in functions
        for statement in ast.walk(definition.node)
        if isinstance(statement, ast.stmt) and statement is not definition.node
    ]
    places.sort(key=lambda place: (-len(wanted & _runs(place.code)), len(place.code)))
    scored = [(likeness(pattern, place.code), place) for place in places[:_COMPARED]]
    # Of statements that hold as much of the pattern, the one that begins like it.
    scored.sort(key=lambda item: -item[0] - likeness(item[1].code[: 2 * len(pattern)], pattern))
    return (replace(place, code=one_line(place.code, 100)) for score, place in scored[:_SHOWN] if score > _ALIKE)


def _runs(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2) if "\n" not in text[start : start + 3]}


def _head(module: ModuleFile, statement: ast.stmt) -> str:
    """A statement, of a compound one the first line, without its body."""
    body = getattr(statement, "body", None) or getattr(statement, "cases", None)
    first = body[0] if isinstance(body, list) and body else None
    start = getattr(first, "lineno", None) or getattr(getattr(first, "pattern", None), "lineno", None)
    last = statement.end_lineno or statement.lineno
    if start is not None:
        last = max(statement.lineno, start - 1)
    return one_line("\n".join(_lines(module)[statement.lineno - 1 : last]), 300)


def _text(module: ModuleFile, node: ast.stmt) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])
    return "\n".join(_lines(module)[first - 1 : node.end_lineno])


def _lines(module: ModuleFile) -> list[str]:
    return module.source.split("\n")


def _file(module: ModuleFile) -> str:
    return module.file or module.name


def _name(module: ModuleFile, path: Sequence[str]) -> str:
    return ".".join((module.name, *path))

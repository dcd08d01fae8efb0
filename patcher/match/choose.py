"""Choosing the places in a function that an edit acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from patcher.errors import EditError
from patcher.match import diagnostics
from patcher.match.control_flow import falls_through
from patcher.match.function_text import FunctionBuffer
from patcher.match.pattern import names_in, parse_pattern
from patcher.match.search import Site, find_assignments, find_pattern, find_returns, narrow
from patcher.match.statements import FunctionIndex, end_of, index_function, start_of
from patcher.plan.edits import Edit


@dataclass(frozen=True)
class FunctionScope:
    """One definition of a target function within a buffer."""

    buffer: FunctionBuffer
    path: tuple[str, ...]
    """Names from the buffer's own function down to the target."""
    ordinal: int = 0

    def index(self, *, inserted: bool = False, edit: Edit | None = None) -> FunctionIndex:
        """Parse the buffer as it stands and walk the target in it; for one edit, an earlier parse may do."""
        view = self.buffer.view(inserted=inserted, names=() if edit is None else names_to_find(edit))
        key = (self.path, self.ordinal)
        known: FunctionIndex | None = view.memory.get(key)
        if known is None:
            known = view.memory[key] = index_function(view, view.find_function(self.path, self.ordinal))
        return known


def names_to_find(edit: Edit) -> Sequence[frozenset[str]]:
    """Per alternative of an edit, the names that a small statement has to hold for it; empty where it may mean more."""
    if edit.place != "match" or edit.inside:
        return ()
    try:
        patterns = [parse_pattern(text) for text in edit.patterns]
    except EditError:
        return ()
    small = (
        pattern.expression is not None
        or (len(pattern.statements) == 1 and isinstance(pattern.statements[0], cst.BaseSmallStatement))
        for pattern in patterns
    )
    return [names_in(text) for text in edit.patterns] if all(small) else ()


@dataclass(frozen=True)
class Choice:
    """Which of the sites of one scope an edit acts on, by their number in source order."""

    inserted: bool
    pattern: str | None
    numbers: tuple[int, ...]
    end: bool = False
    """For ``at: return``: the place where the function ends without a return statement."""


def choose(scopes: Sequence[FunctionScope], edit: Edit) -> list[tuple[FunctionScope, Choice]]:
    """What an edit acts on in each definition. Raises EditError when that is nothing or not clear."""
    patterns: Sequence[str | None] = edit.patterns or (None,)
    for inserted in (False, True):
        indexes = [scope.index(inserted=inserted, edit=edit) for scope in scopes]
        for pattern in patterns:
            per_scope = [sites_of(index, edit, pattern) for index in indexes]
            ends = [_has_open_end(index, edit) for index in indexes]
            flat = [
                (scope, number, site)
                for scope, sites, end in zip(range(len(scopes)), per_scope, ends, strict=True)
                for number, site in enumerate([*sites, *([None] if end else [])])
            ]
            if not flat:
                continue
            picked = _pick(flat, edit, indexes)
            if not all(site is None or _is_current(indexes[at], site) for at, _, site in picked):
                # A statement on the same line was rewritten meanwhile.
                for scope in scopes:
                    scope.buffer.changed()
                return choose(scopes, edit)
            return [
                (
                    scope,
                    Choice(
                        inserted,
                        pattern,
                        tuple(number for at, number, site in picked if at == position and site is not None),
                        any(at == position and site is None for at, _, site in picked),
                    ),
                )
                for position, scope in enumerate(scopes)
            ]
    raise EditError(diagnostics.no_match(edit, [scope.index() for scope in scopes]))


def _is_current(index: FunctionIndex, site: Site) -> bool:
    first, last = start_of(index.view, site.first.node)[0], end_of(index.view, site.last.node)[0]
    return index.view.is_current(first, last)


def _pick(
    flat: list[tuple[int, int, Site | None]], edit: Edit, indexes: Sequence[FunctionIndex]
) -> list[tuple[int, int, Site | None]]:
    nth = edit.nth
    if nth is None and edit.place in ("return", "assign"):
        nth = "all"
    if nth == "all":
        return flat
    if nth is not None:
        if abs(nth) > len(flat):
            raise EditError(
                f"{edit.origin}: nth: {nth}, but {edit.summary} is found only {diagnostics.times(len(flat))}:\n"
                + diagnostics.places([(indexes[at], site) for at, _, site in flat if site is not None])
            )
        return [flat[nth - 1 if nth > 0 else nth]]
    if len(flat) == 1:
        return flat
    whole = [item for item in flat if item[2] is not None and is_whole_statement(item[2])]
    if len(whole) == 1 and edit.action != "wrap":
        return whole
    raise EditError(diagnostics.ambiguous(edit, [(indexes[at], site) for at, _, site in flat if site is not None]))


def is_whole_statement(site: Site) -> bool:
    """Whether the matched expression is a statement of its own."""
    return (
        site.expression is not None
        and getattr(site.first.node, "value", None) is site.expression
        and (isinstance(site.first.node, cst.Expr))
    )


def sites_of(index: FunctionIndex, edit: Edit, pattern: str | None) -> list[Site]:
    """All places that one alternative of an edit means in one definition, in source order."""
    if edit.place == "return":
        sites = find_returns(index)
    else:
        assert pattern is not None
        try:
            parsed = parse_pattern(pattern)
        except EditError as error:
            raise EditError(f"{edit.origin}: {error}") from None
        if edit.place == "assign":
            if parsed.expression is None:
                raise EditError(f"{edit.origin}: assign: {pattern!r} is not a name or another target")
            sites = find_assignments(index, parsed.expression)
        else:
            sites = find_pattern(index, parsed)
        if edit.action == "wrap" and parsed.kind != "expression":
            raise EditError(f"{edit.origin}: wrap needs an expression, {pattern!r} is a statement")
    if edit.inside:
        kept: list[Site] = []
        for outer in edit.inside:
            kept = narrow(index, sites, parse_pattern(outer))
            if kept:
                break
        sites = kept
    return sites


def _has_open_end(index: FunctionIndex, edit: Edit) -> bool:
    return edit.place == "return" and not edit.inside and falls_through(index.body)

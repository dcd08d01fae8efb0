"""Finding the places in a function that an edit means: code that its pattern matches or, in SGLang's form, lines of
text, whatever they mean in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import libcst as cst

from patcher.match.candidates import Candidates
from patcher.match.function_text import FunctionBuffer, FunctionView, Line
from patcher.match.matcher import Bindings, flatten, match, match_expression, match_statements
from patcher.match.pattern import Pattern
from patcher.match.statements import Block, FunctionIndex, Point, Statement, end_of, start_of


@dataclass(eq=False)
class Site:
    """One place that matches: statements ``first`` to ``last`` of one block, or an expression within one."""

    first: Statement
    last: Statement
    bindings: Bindings
    expression: cst.CSTNode | None = None
    body_start: Block | None = None
    """Code goes to the start of this block instead of after the statement (loop variables, ``with … as``)."""

    @property
    def node(self) -> cst.CSTNode:
        """The matched node; for several statements the first."""
        return self.expression if self.expression is not None else self.first.node


def find_pattern(index: FunctionIndex, pattern: Pattern) -> list[Site]:
    """Every place where a pattern matches, in source order."""
    if pattern.expression is not None:
        found = [
            Site(statement, statement, bindings, expression=node)
            for node, statement in Candidates.of(index).of_expression(pattern.expression)
            if (bindings := match_expression(pattern, node)) is not None
        ]
        return sorted(found, key=lambda site: start_of(index.view, site.node))
    sites: list[Site] = []
    for block, start in Candidates.of(index).of_statements(pattern.statements):
        result = match_statements(pattern, block.nodes, start)
        if result is not None and result[0] > start:
            sites.append(Site(block.statements[start], block.statements[result[0] - 1], result[1]))
    return sorted(sites, key=lambda site: start_of(index.view, site.first.node))


def find_returns(index: FunctionIndex) -> list[Site]:
    """The function's own return statements."""
    return [
        Site(statement, statement, {})
        for statement in index.in_order
        if statement.own_scope and isinstance(statement.node, cst.Return)
    ]


def find_assignments(index: FunctionIndex, target: cst.CSTNode) -> list[Site]:
    """Places after which ``target`` has a new value: assignments, loops, ``with … as``, ``import … as``."""
    candidates = Candidates.of(index)
    sites: list[Site] = []
    known: set[int] = set()
    for assigned in candidates.of_target(target):
        statement = assigned.statement
        bindings = next(match(target, assigned.target, {}), None) if id(statement) not in known else None
        if bindings is not None:
            body = None if assigned.suite is None else index.block_of(assigned.suite)
            sites.append(Site(statement, statement, bindings, body_start=body))
            known.add(id(statement))
    walrus = [
        Site(statement, statement, bindings, expression=node)
        for node, statement in candidates.expressions.get(("NamedExpr",), ())
        if isinstance(node, cst.NamedExpr) and statement.own_scope
        for bindings in match(target, node.target, {})
    ]
    sites.extend(site for site in walrus if id(site.first) not in known)
    return sorted(sites, key=lambda site: start_of(index.view, site.first.node))


def narrow(index: FunctionIndex, sites: Sequence[Site], pattern: Pattern) -> list[Site]:
    """Only the sites that lie within code that matches ``pattern``."""
    ranges: list[tuple[Point, Point]] = []
    for site in find_pattern(index, pattern):
        if site.expression is not None:
            ranges.append((start_of(index.view, site.expression), end_of(index.view, site.expression)))
        else:
            ranges.append((start_of(index.view, site.first.node), end_of(index.view, site.last.node)))
    if pattern.kind == "statements" and len(pattern.statements) == 1:
        for node, _ in index.branches:
            if match_statements(pattern, [node], 0) is not None:  # type: ignore[list-item]
                ranges.append((start_of(index.view, node), _branch_end(index.view, node)))
    return [
        site
        for site in sites
        if any(
            start <= start_of(index.view, site.node)
            and end_of(index.view, site.expression or site.last.node) <= end
            and (start, end) != (start_of(index.view, site.node), end_of(index.view, site.expression or site.last.node))
            for start, end in ranges
        )
    ]


def _branch_end(view: FunctionView, node: cst.CSTNode) -> Point:
    """Where the ``elif`` part itself ends, without the parts after it."""
    body = getattr(node, "body", None)
    statements = flatten(body) if isinstance(body, cst.BaseSuite) else []
    return end_of(view, statements[-1]) if statements else end_of(view, node)


def find_lines(buffers: Sequence[FunctionBuffer], text: str) -> list[tuple[FunctionBuffer, list[Line]]]:
    """Every place where the lines of ``text`` stand one after the other, indentation left aside.

    Code that edits put in counts as it was written; taps of short forms and preambles do not count.
    """
    wanted = [line.strip() for line in text.strip().splitlines()]
    found: list[tuple[FunctionBuffer, list[Line]]] = []
    for buffer in buffers:
        lines = [line for line in buffer.lines if line.kind != "generated" and not line.preamble]
        stripped = [line.as_written.strip() for line in lines]
        found += [
            (buffer, lines[start : start + len(wanted)])
            for start in range(len(stripped) - len(wanted) + 1)
            if wanted and stripped[start : start + len(wanted)] == wanted
        ]
    return found

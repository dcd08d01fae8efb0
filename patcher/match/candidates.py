"""The few places of a function that a pattern can match at all, found without looking at all of them.

Nodes are sorted by what is quick to see: their kind, and the last name in what they call, read or assign. A pattern
that leaves that open looks at every node of its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import libcst as cst

from patcher.match.matcher import LITERALS, StatementNode, is_dots, is_open, see_through
from patcher.match.statements import Block, FunctionIndex, Statement

Key = tuple[str, ...]


@dataclass(frozen=True)
class Assigned:
    """A target that a statement assigns."""

    statement: Statement
    target: cst.CSTNode
    suite: cst.BaseSuite | None
    """The suite at whose start the value is there; None: it is there after the statement."""


@dataclass
class Candidates:
    """The nodes of one function by their keys, in source order."""

    expressions: dict[Key, list[tuple[cst.CSTNode, Statement]]] = field(default_factory=dict)
    runs: dict[Key, list[tuple[Block, int]]] = field(default_factory=dict)
    """Statements as a block and a position in it."""
    assigned: dict[Key, list[Assigned]] = field(default_factory=dict)

    @classmethod
    def of(cls, index: FunctionIndex) -> Candidates:
        """Those of an index, which keeps them."""
        known: Candidates | None = index.derived.get("candidates")
        if known is None:
            known = index.derived["candidates"] = cls._made(index)
        return known

    @classmethod
    def _made(cls, index: FunctionIndex) -> Candidates:
        made = cls()
        for node, statement in index.expressions:
            for key in (_ALL, *_keys(node)):
                made.expressions.setdefault(key, []).append((node, statement))
        for block in index.blocks:
            for position, inner in enumerate(block.statements):
                for key in (_ALL, *_statement_keys(inner.node)):
                    made.runs.setdefault(key, []).append((block, position))
        for statement in index.in_order:
            for target, suite in _assigned(statement.node) if statement.own_scope else ():
                for leaf in _leaves(target):
                    for key in (_ALL, *_keys(leaf)):
                        made.assigned.setdefault(key, []).append(Assigned(statement, leaf, suite))
        return made

    def of_expression(self, pattern: cst.CSTNode) -> Sequence[tuple[cst.CSTNode, Statement]]:
        """Expressions that the pattern may match, each with its statement."""
        return self.expressions.get(_wanted(pattern), ())

    def of_statements(self, patterns: Sequence[StatementNode]) -> Sequence[tuple[Block, int]]:
        """Statements at which consecutive ones that match may begin."""
        return self.runs.get(_ALL if is_dots(patterns[0]) else _wanted_statement(patterns[0]), ())

    def of_target(self, pattern: cst.CSTNode) -> Sequence[Assigned]:
        """Assigned targets that the pattern may match."""
        return self.assigned.get(_wanted(pattern), ())


_ALL: Key = ()


def _keys(node: Any) -> tuple[Key, ...]:
    """The kind of an expression, and with it the name that it ends with, if it has one."""
    node = see_through(node)
    if type(node) in LITERALS:
        return (("literal",),)
    kind = type(node).__name__
    name = _name(node)
    return ((kind,), (kind, *name)) if name else ((kind,),)


def _name(node: Any) -> Key:
    if type(node) is cst.Call:
        function = see_through(node.func)
        return (type(function).__name__, *_name(function))
    if type(node) is cst.Attribute:
        return (node.attr.value,)
    return (node.value,) if type(node) is cst.Name else ()


def _wanted(pattern: Any) -> Key:
    """The narrowest key under which everything stands that an expression pattern may match."""
    if is_open(pattern):
        return _ALL
    if type(pattern) in LITERALS:
        return ("literal",)
    kind = type(pattern).__name__
    if type(pattern) is cst.Call:
        function = pattern.func
        if is_open(function) or (type(function) is cst.Attribute and is_open(function.attr)):
            return (kind,)
    if type(pattern) is cst.Attribute and is_open(pattern.attr):
        return (kind,)
    name = _name(pattern)
    return (kind, *name) if name else (kind,)


def _statement_keys(node: StatementNode) -> Iterator[Key]:
    kind = _statement_kind(node)
    yield (kind,)
    value = getattr(node, "value", None)
    if isinstance(value, cst.BaseExpression):
        yield from ((kind, "value", *key) for key in _keys(value))
    for target in _plain_targets(node):
        yield from ((kind, "target", *key) for key in _keys(target))


def _wanted_statement(pattern: StatementNode) -> Key:
    kind = _statement_kind(pattern)
    value = getattr(pattern, "value", None)
    keys = [("value", *_wanted(value))] if isinstance(value, cst.BaseExpression) else []
    keys += [("target", *_wanted(target)) for target in _plain_targets(pattern)]
    narrow = max(keys, key=len, default=())
    return (kind, *narrow) if len(narrow) > 1 else (kind,)


def _statement_kind(node: StatementNode) -> str:
    # A pattern without an annotation matches an assignment that has one.
    return "Assign" if isinstance(node, cst.AnnAssign) else type(node).__name__


def _plain_targets(node: StatementNode) -> Sequence[cst.CSTNode]:
    if isinstance(node, cst.AnnAssign):
        return (node.target,)
    return [target.target for target in node.targets] if isinstance(node, cst.Assign) else ()


def _assigned(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.BaseSuite | None]]:
    """Targets that a statement assigns, each with the suite at whose start the value is there."""
    if isinstance(node, cst.Assign):
        yield from ((target.target, None) for target in node.targets)
    elif isinstance(node, cst.AnnAssign):
        if node.value is not None:
            yield node.target, None
    elif isinstance(node, cst.AugAssign):
        yield node.target, None
    elif isinstance(node, cst.For):
        yield node.target, node.body
    elif isinstance(node, cst.With):
        yield from ((item.asname.name, node.body) for item in node.items if item.asname is not None)
    elif isinstance(node, (cst.Try, cst.TryStar)):
        for handler in node.handlers:
            if handler.name is not None:
                yield handler.name.name, handler.body
    elif isinstance(node, (cst.Import, cst.ImportFrom)) and not isinstance(node.names, cst.ImportStar):
        for alias in node.names:
            yield (alias.asname.name if alias.asname is not None else alias.name), None


def _leaves(target: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """The single targets in a target, tuples and stars taken apart; the whole target first."""
    yield target
    if isinstance(target, (cst.Tuple, cst.List)):
        for element in target.elements:
            yield from _leaves(element.value)

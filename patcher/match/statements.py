"""The statements and evaluated expressions of a function, and where each begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

import libcst as cst

from patcher.generated_names import WRAP_FUNCTION
from patcher.match.function_text import FunctionView
from patcher.match.matcher import flatten, relevant_fields

Point = tuple[int, int]


@dataclass(eq=False)
class Block:
    """The statements of one suite, and the compound statement that it belongs to."""

    statements: list[Statement] = field(default_factory=list)
    owner: Statement | None = None
    suite: cst.CSTNode | None = None

    @cached_property
    def nodes(self) -> list[cst.BaseSmallStatement | cst.BaseCompoundStatement]:
        """The nodes of the statements."""
        return [statement.node for statement in self.statements]


@dataclass(eq=False)
class Statement:
    """A statement in its block. ``elif`` and ``else`` belong to the ``if`` that begins them."""

    node: cst.BaseSmallStatement | cst.BaseCompoundStatement
    block: Block
    index: int
    line: cst.CSTNode
    """The libcst line or one-line suite that holds a small statement; the node itself for a compound one."""
    own_scope: bool
    """Whether it belongs to the target function itself and not to a function or class nested in it."""


@dataclass
class FunctionIndex:
    """All statements and all evaluated expressions of a function's body, in source order."""

    view: FunctionView
    function: cst.FunctionDef
    body: Block
    blocks: list[Block]
    expressions: list[tuple[cst.CSTNode, Statement]]
    branches: list[tuple[cst.CSTNode, Statement]]
    """``elif`` parts and handlers: nodes that patterns of ``inside`` may name besides statements."""
    derived: dict[str, Any] = field(default_factory=dict)
    """What has been worked out from it, by whoever did."""

    @cached_property
    def in_order(self) -> list[Statement]:
        """Every statement of the function in source order, nested ones after the one that holds them."""
        found = [statement for block in self.blocks for statement in block.statements]
        return sorted(found, key=lambda statement: start_of(self.view, statement.node))

    @cached_property
    def _blocks_by_suite(self) -> dict[int, Block]:
        return {id(block.suite): block for block in self.blocks}

    def block_of(self, suite: cst.CSTNode) -> Block | None:
        """The block of a suite."""
        return self._blocks_by_suite.get(id(suite))


def index_function(view: FunctionView, function: cst.FunctionDef) -> FunctionIndex:
    """Walk a function's body once."""
    walker = _Walker(view)
    body = walker.block(function.body, None, own_scope=True)
    return FunctionIndex(view, function, body, walker.blocks, walker.expressions, walker.branches)


def start_of(view: FunctionView, node: cst.CSTNode) -> Point:
    """Line and column where a node begins, decorators included."""
    decorators = getattr(node, "decorators", None)
    if decorators:
        node = decorators[0]
    start = view.range(node).start
    return start.line, start.column


def end_of(view: FunctionView, node: cst.CSTNode) -> Point:
    """Line and column where the code of a node ends."""
    last = _last_suite(node)
    if last is not None:
        statements = flatten(last)
        if statements:
            return end_of(view, statements[-1])
    end = view.range(node).end
    return end.line, end.column


def _last_suite(node: cst.CSTNode) -> cst.BaseSuite | None:
    for name in ("finalbody", "orelse"):
        part = getattr(node, name, None)
        if isinstance(part, cst.If):
            return _last_suite(part)
        if part is not None and not isinstance(part, cst.BaseExpression):
            return part.body if isinstance(part.body, cst.BaseSuite) else None
    handlers = getattr(node, "handlers", None) or getattr(node, "cases", None)
    if handlers:
        return _last_suite(handlers[-1])
    body = getattr(node, "body", None)
    return body if isinstance(body, cst.BaseSuite) else None


@cache
def _role(kind: Any) -> Literal["suite", "target", "expression", "branch", "other", "none"]:
    """What the walker does with a node of that type; found once for each, because ``isinstance`` is slow for them."""
    if issubclass(kind, cst.BaseSuite):
        return "suite"
    if issubclass(kind, (cst.AssignTarget, cst.CompFor)):
        return "target"
    if issubclass(kind, cst.Annotation) or not issubclass(kind, cst.CSTNode):
        return "none"
    if issubclass(kind, cst.BaseExpression):
        return "expression"
    return "branch" if issubclass(kind, (cst.If, cst.ExceptHandler, cst.ExceptStarHandler)) else "other"


class _Walker:
    """Collects the blocks of a function and the expressions that are evaluated in them."""

    def __init__(self, view: FunctionView) -> None:
        self._note_holder = view.positions.note_holder
        self.blocks: list[Block] = []
        self.expressions: list[tuple[cst.CSTNode, Statement]] = []
        self.branches: list[tuple[cst.CSTNode, Statement]] = []

    def block(self, suite: cst.BaseSuite, owner: Statement | None, *, own_scope: bool) -> Block:
        block = Block(owner=owner, suite=suite)
        self.blocks.append(block)
        for line in suite.body:
            smalls = line.body if isinstance(line, cst.SimpleStatementLine) else [line]
            holder = suite if isinstance(suite, cst.SimpleStatementSuite) else line
            for node in smalls:
                if not isinstance(node, (cst.BaseSmallStatement, cst.BaseCompoundStatement)):
                    continue
                statement = Statement(node, block, len(block.statements), holder, own_scope)
                block.statements.append(statement)
                self._inside(node, statement, own_scope)
        return block

    def _inside(self, node: cst.CSTNode, statement: Statement, own_scope: bool) -> None:
        nested = own_scope and not isinstance(node, (cst.FunctionDef, cst.ClassDef))
        for name in relevant_fields(type(node)):
            value = getattr(node, name)
            if name in _NOT_EVALUATED.get(type(node), ()):
                continue
            for child in value if isinstance(value, (list, tuple)) else (value,):
                self._child(child, statement, nested)

    def _child(self, child: Any, statement: Statement, own_scope: bool) -> None:
        kind: Any = type(child)
        role = _role(kind)
        if role == "suite":
            self.block(child, statement, own_scope=own_scope)
        elif role == "target":
            self._target(child.target, statement)
            self._rest(child, statement, own_scope, skip=("target",))
        elif role == "expression":
            self._expression(child, statement, own_scope)
        elif role == "branch":
            self.branches.append((child, statement))
            self._rest(child, statement, own_scope)
        elif role == "other":
            self._rest(child, statement, own_scope)

    def _rest(self, node: cst.CSTNode, statement: Statement, own_scope: bool, skip: Sequence[str] = ()) -> None:
        skipped = (*skip, *_NOT_EVALUATED.get(type(node), ()))
        for name in relevant_fields(type(node)):
            value = getattr(node, name)
            if name in skipped:
                continue
            for child in value if isinstance(value, (list, tuple)) else (value,):
                self._child(child, statement, own_scope)

    def _expression(self, node: cst.BaseExpression, statement: Statement, own_scope: bool) -> None:
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == WRAP_FUNCTION:
            # An earlier edit wrapped this value: only the value itself is the target's code.
            self._expression(node.args[1].value, statement, own_scope)
            return
        self.expressions.append((node, statement))
        self._note_holder(node, statement.node)
        if not isinstance(node, (cst.FormattedString, cst.ConcatenatedString)):
            self._rest(node, statement, own_scope)

    def _target(self, node: cst.CSTNode, statement: Statement) -> None:
        """Of an assignment target only the parts that are evaluated: ``x[f(i)]``, ``f(x).y``."""
        if isinstance(node, cst.Attribute):
            self._expression(node.value, statement, True)
        elif isinstance(node, cst.Subscript):
            self._expression(node.value, statement, True)
            for element in node.slice:
                self._child(element, statement, True)
        elif isinstance(node, (cst.Tuple, cst.List)):
            for item in node.elements:
                self._target(item.value, statement)


_NOT_EVALUATED: dict[type[cst.CSTNode], tuple[str, ...]] = {
    cst.Attribute: ("attr",),
    cst.Arg: ("keyword",),
    cst.Param: ("name",),
    cst.FunctionDef: ("name", "type_parameters"),
    cst.ClassDef: ("name", "type_parameters"),
    cst.NamedExpr: ("target",),
    cst.Import: ("names",),
    cst.ImportFrom: ("names", "module"),
    cst.Global: ("names",),
    cst.Nonlocal: ("names",),
    cst.Del: ("target",),
    cst.For: ("target",),
    cst.AugAssign: ("target",),
    cst.AnnAssign: ("target",),
    cst.AsName: ("name",),
    cst.MatchCase: ("pattern",),
    cst.TypeAlias: ("name", "type_parameters", "value"),
}

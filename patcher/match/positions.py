"""Where the nodes of a libcst tree stand in its source.

libcst knows positions only by writing out the whole tree once more, which takes longer than parsing it. Statements get
theirs from ``ast``, which parses in no time and has the same statements in the same order. The expressions of a
statement get theirs by writing out this one statement, once somebody asks for one of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import libcst as cst
from libcst._nodes.internal import CodegenState
from libcst.metadata import CodePosition, CodeRange

from patcher.match.matcher import flatten

Place = tuple[int, int, int, int]
"""First line, first column, last line, column of the end: lines from 1, columns in characters from 0."""
_PASS = cst.SimpleStatementSuite([cst.Pass()])
_Handlers = (cst.ExceptHandler, cst.ExceptStarHandler)


class Positions:
    """The positions of one module's nodes, found when they are asked for."""

    def __init__(self, module: cst.Module, source: str) -> None:
        self._module = module
        self._lines = source.split("\n")
        self._places: dict[int, Place] = {}
        self._twins: dict[int, tuple[cst.CSTNode, Any, tuple[str, ...]]] = {}
        """By id of a statement: it, the same statement of ``ast``, and the indentation of its block."""
        self._holders: dict[int, cst.CSTNode] = {}
        self._kept: list[cst.CSTNode] = []
        """Nodes whose ids are keys and that nothing else keeps alive."""
        self._complete = False
        try:
            self._pair(module.body, ast.parse(source).body, ())
        except (SyntaxError, ValueError):
            self._write_out_all()  # the two do not agree

    def __getitem__(self, node: cst.CSTNode) -> CodeRange:
        """Raises KeyError for a node that has no place of its own."""
        place = self._place(node)
        return CodeRange(CodePosition(place[0], place[1]), CodePosition(place[2], place[3]))

    def note_holder(self, expression: cst.CSTNode, statement: cst.CSTNode) -> None:
        """Say which statement an expression is in, so that not all of them are gone through for it."""
        self._holders[id(expression)] = statement

    def _place(self, node: cst.CSTNode) -> Place:
        key = id(node)
        if key not in self._places and not self._complete:
            if key in self._twins:
                twin = self._twins[key][1]
                first, last = twin.lineno, twin.end_lineno
                start, end = self._column(first, twin.col_offset), self._column(last, twin.end_col_offset)
                self._places[key] = (first, start, last, end)
            elif key in self._holders:
                self._write_out(self._holders[key])
        if key not in self._places:
            self._write_out_all()
        return self._places[key]

    def _column(self, line: int, offset: int) -> int:
        text = self._lines[line - 1]
        return offset if text.isascii() else len(text.encode()[:offset].decode())

    def _pair(
        self, body: Sequence[cst.CSTNode] | cst.BaseSuite, twins: Sequence[Any], indents: tuple[str, ...]
    ) -> None:
        """Note the statements of a block, and of all blocks in it. Raises ValueError when they are not the same."""
        if isinstance(body, cst.IndentedBlock):
            indents = (*indents, self._module.default_indent if body.indent is None else body.indent)
        for node, twin in zip(flatten(body), twins, strict=True):
            self._twins[id(node)] = (node, twin, indents)
            for suite, inner in _blocks(node, twin, indents, self._twins.__setitem__):
                self._pair(suite, inner, indents)

    def _write_out(self, statement: cst.CSTNode) -> None:
        """Find the places of everything in a small statement, or in the first lines of a compound one."""
        if id(statement) not in self._twins:
            return
        node, twin, indents = self._twins[id(statement)]
        if isinstance(node, cst.BaseSmallStatement):
            _State(self._module, self._places, (twin.lineno, self._place(node)[1]), indents).write(node)
            return
        for part in _parts(node):
            _, twin, indents = self._twins[id(part)]
            own = self._place(part)
            short: Any = part.with_changes(**{name: value for name, value in _SHORT if hasattr(part, name)})
            self._kept.append(short)
            line = min([twin.lineno, *(decorator.lineno for decorator in getattr(twin, "decorator_list", ()))])
            state = _State(self._module, self._places, (line, 0), indents)
            state.write(short, **({"is_elif": True} if part is not node and isinstance(part, cst.If) else {}))
            if self._places[id(short)][:2] != own[:2]:
                self._write_out_all()

    def _write_out_all(self) -> None:
        if not self._complete:
            self._complete = True
            self._places = {}
            _State(self._module, self._places, (1, 0), ()).write(self._module)


_SHORT = (("body", _PASS), ("orelse", None), ("leading_lines", ()))
"""What is left of a compound statement when only its first lines matter."""


def _parts(node: cst.CSTNode) -> Iterator[Any]:
    """What of a compound statement has expressions before its colon: itself, ``elif`` parts, handlers."""
    if isinstance(node, (cst.Try, cst.TryStar)):
        yield from node.handlers
    elif not isinstance(node, cst.Match):
        yield node
        while isinstance(node, cst.If) and isinstance(node.orelse, cst.If):
            node = node.orelse
            yield node


def _blocks(
    node: cst.CSTNode,
    twin: Any,
    indents: tuple[str, ...],
    note: Callable[[int, tuple[Any, Any, tuple[str, ...]]], None],
) -> Iterator[tuple[cst.BaseSuite, Sequence[Any]]]:
    """The blocks of a compound statement, each with the statements that it has in ``ast``."""
    if isinstance(node, cst.Match):
        for case, other in zip(node.cases, twin.cases, strict=True):
            yield case.body, other.body
        return
    body = getattr(node, "body", None)
    if isinstance(body, cst.BaseSuite):
        yield body, twin.body
    for handler, other in zip(getattr(node, "handlers", ()), getattr(twin, "handlers", ()), strict=True):
        note(id(handler), (handler, other, indents))
        yield handler.body, other.body
    orelse = getattr(node, "orelse", None)
    if isinstance(orelse, cst.If):
        (other,) = twin.orelse
        note(id(orelse), (orelse, other, indents))
        yield from _blocks(orelse, other, indents, note)
    elif isinstance(orelse, cst.Else):
        yield orelse.body, twin.orelse
    finalbody = getattr(node, "finalbody", None)
    if finalbody is not None:
        yield finalbody.body, twin.finalbody


class _State(CodegenState):
    """What libcst writes a node out to: nothing is kept of it but where its parts begin and end."""

    def __init__(
        self, module: cst.Module, places: dict[int, Place], start: tuple[int, int], indents: Sequence[str]
    ) -> None:
        super().__init__(module.default_indent, module.default_newline, indent_tokens=list(indents))
        self.places = places
        self.line, self.column = start
        self._open: list[tuple[int, int]] = []

    def write(self, node: cst.CSTNode, **how: Any) -> None:
        """Go through a node."""
        node._codegen(self, **how)

    def add_indent_tokens(self) -> None:
        for token in self.indent_tokens:
            self.column += len(token)

    def add_token(self, value: str) -> None:
        breaks = value.count("\n")
        if breaks:
            self.line += breaks
            self.column = len(value) - value.rfind("\n") - 1
        else:
            self.column += len(value)

    def pop_trailing_newline(self) -> None:
        pass

    def before_codegen(self, node: cst.CSTNode) -> None:
        self._open.append((self.line, self.column))

    def after_codegen(self, node: cst.CSTNode) -> None:
        start = self._open.pop()
        if id(node) not in self.places:
            self.places[id(node)] = (*start, self.line, self.column)

    def record_syntactic_position(
        self, node: cst.CSTNode, *, start_node: cst.CSTNode | None = None, end_node: cst.CSTNode | None = None
    ) -> Any:
        return _Recorded(self, node, start_node, end_node)


class _Recorded:
    """Notes where a node itself begins and ends, the space around it left out."""

    __slots__ = ("end_node", "node", "start", "start_node", "state")

    def __init__(
        self, state: _State, node: cst.CSTNode, start_node: cst.CSTNode | None, end_node: cst.CSTNode | None
    ) -> None:
        self.state, self.node, self.start_node, self.end_node = state, node, start_node, end_node

    def __enter__(self) -> None:
        self.start = (self.state.line, self.state.column)

    def __exit__(self, *_: object) -> Literal[False]:
        places = self.state.places
        start = self.start if self.start_node is None else places[id(self.start_node)][:2]
        end = (self.state.line, self.state.column) if self.end_node is None else places[id(self.end_node)][2:]
        places[id(self.node)] = (*start, *end)
        return False

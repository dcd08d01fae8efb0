"""Where a function begins: the place for ``at: entry`` and for preambles."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from patcher.match.choose import FunctionScope
from patcher.match.function_text import CodeLine, FunctionBuffer, FunctionView, Kind, Line, Role
from patcher.match.statements import FunctionIndex, Statement, end_of, start_of
from patcher.rewrite.splice import isolate, needs_isolation


def set_apart(scope: FunctionScope, number: int) -> FunctionIndex:
    """Give one of the statements of a function's body lines of its own; returns the function as it is then."""
    index = scope.index()
    if not needs_isolation(index.body.statements[number]):
        return index
    scope.buffer.carry_out_wraps()
    index = scope.index()
    isolate(scope.buffer, index.view, index.body.statements[number])
    return scope.index()


def entry_line(index: FunctionIndex) -> Line:
    """The line of the first statement after the docstring (or of the docstring, when it is all there is)."""
    return index.view.line_at(start_of(index.view, _entry_statement(index).node)[0])


def _entry_statement(index: FunctionIndex) -> Statement:
    statements = index.body.statements
    number = 1 if _has_docstring(index) else 0
    # A name must not be used before it is declared global.
    while number < len(statements) and isinstance(statements[number].node, (cst.Global, cst.Nonlocal)):
        number += 1
    return statements[min(number, len(statements) - 1)]


def insert_at_entry(
    buffer: FunctionBuffer, index: FunctionIndex, code: Sequence[CodeLine], kind: Kind, owner: str
) -> None:
    """Put code at the start of a function, after its docstring and what earlier edits put there."""
    view = index.view
    statements = index.body.statements
    indent = indent_of(view, statements[0])
    anchor = entry_line(index)
    last = statements[-1]
    if _entry_statement(index) is last and _is_preface(last, index):
        position = buffer.lines.index(view.line_at(end_of(view, last.node)[0])) + 1
        while position < len(buffer.lines) and buffer.lines[position].role == "entry":
            position += 1
    else:
        position = buffer.lines.index(anchor)
        while buffer.lines[position - 1].role == "before":
            position -= 1
    buffer.insert(position, placed(code, indent, anchor.origin, kind, "entry", owner))


def _has_docstring(index: FunctionIndex) -> bool:
    first = index.body.statements[0].node
    return isinstance(first, cst.Expr) and isinstance(first.value, (cst.SimpleString, cst.ConcatenatedString))


def _is_preface(statement: Statement, index: FunctionIndex) -> bool:
    """Whether entry code has to come after this statement: a docstring, or a declaration."""
    if isinstance(statement.node, (cst.Global, cst.Nonlocal)):
        return True
    return statement.index == 0 and _has_docstring(index)


def indent_of(view: FunctionView, statement: Statement) -> str:
    """What stands before a statement on its line."""
    text = view.line_at(start_of(view, statement.node)[0]).text
    return text[: len(text) - len(text.lstrip())]


def placed(code: Sequence[CodeLine], indent: str, origin: int, kind: Kind, role: Role, owner: str) -> list[Line]:
    """Lines of an edit at an indentation; ``origin`` is the original line that tracebacks show for them."""
    return [Line(line.at(indent), origin, kind, role, columns_kept=False, owner=owner, indent=indent) for line in code]

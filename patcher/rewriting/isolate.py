"""Giving a statement lines of its own, so that code can be put before and after it."""

from __future__ import annotations

import libcst as cst

from patcher.matching.search import Statement, start_of
from patcher.rewriting.buffer import FunctionBuffer, FunctionView, Line


def needs_isolation(statement: Statement) -> bool:
    """Whether the statement shares its line with others (``a; b``) or with a header (``if x: a``)."""
    holder = statement.line
    if isinstance(holder, cst.SimpleStatementSuite):
        return True
    return isinstance(holder, cst.SimpleStatementLine) and len(holder.body) > 1


def isolate(buffer: FunctionBuffer, view: FunctionView, statement: Statement) -> None:
    """Put each statement of the line or one-line suite on lines of its own; what they mean stays the same."""
    holder = statement.line
    assert isinstance(holder, (cst.SimpleStatementLine, cst.SimpleStatementSuite))
    first_number, first_column = start_of(view, holder.body[0])
    last_number = view.range(holder.body[-1]).end.line
    first_line = view.line_at(first_number)
    indent = _margin(first_line.text)
    lines: list[Line] = []
    if isinstance(holder, cst.SimpleStatementSuite):
        indent += "    "
        lines.append(_like(first_line, first_line.text[:first_column].rstrip(), kept=True))
    for node in holder.body:
        number = view.range(node).start.line
        texts = view.text_of(node).split("\n")
        lines.append(_like(view.line_at(number), indent + texts[0]))
        lines.extend(_like(view.line_at(number + k), text) for k, text in enumerate(texts[1:], start=1))
    old = [view.line_at(number) for number in range(first_number, last_number + 1)]
    position = buffer.lines.index(old[0])
    for line in old:
        buffer.lines.remove(line)
    for line in old:
        for hook in line.returns:
            _line_of_return(lines).returns.append(hook)
    buffer.insert(position, lines)


def _margin(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _like(line: Line, text: str, *, kept: bool = False) -> Line:
    return Line(text, line.origin, kind=line.kind, role=line.role, columns_kept=kept, owner=line.owner)


def _line_of_return(lines: list[Line]) -> Line:
    return next((line for line in lines if line.text.strip().startswith("return")), lines[-1])

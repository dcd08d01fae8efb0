"""Changing the text of a function: replacing expressions and statements, giving a statement lines of its own."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import libcst as cst

from patcher.errors import EditError
from patcher.match.function_text import CodeLine, FunctionBuffer, FunctionView, Line
from patcher.match.search import Site
from patcher.match.statements import Statement, end_of, start_of


def replace_range(
    buffer: FunctionBuffer, view: FunctionView, statement: Statement, node: cst.CSTNode, new: str
) -> None:
    """Put ``new`` in the place of an expression in a statement. The number of lines stays the same.

    When the new text has more lines than the old, the further ones join the last line's text: they can only
    come from the matched code itself, whose line breaks are within brackets.
    """
    whole = range(start_of(view, statement.node)[0], end_of(view, statement.node)[0] + 1)
    old = "\n".join(view.line_at(number).text for number in whole)
    position = view.range(node)
    numbers = range(position.start.line, position.end.line + 1)
    lines = [view.line_at(number) for number in numbers]
    head = lines[0].text[: position.start.column]
    tail = lines[-1].text[position.end.column :]
    texts = new.split("\n")
    if len(texts) > len(lines):
        texts = [*texts[: len(lines) - 1], "\n".join(texts[len(lines) - 1 :])]
    texts += [""] * (len(lines) - len(texts))
    texts[0] = head + texts[0]
    texts[-1] = texts[-1] + tail
    for line, text in zip(lines, texts, strict=True):
        line.text = text
        line.columns_kept = False
    buffer.rewrote(old, "\n".join(view.line_at(number).text for number in whole))


def replace_statements(
    buffer: FunctionBuffer, view: FunctionView, site: Site, code: Sequence[CodeLine], indent: str, owner: str
) -> None:
    """Put code in the place of whole statements.

    Raises EditError when taps of earlier edits lie between the lines that would go.
    """
    first_line = view.line_at(start_of(view, site.first.node)[0])
    last_line = view.line_at(end_of(view, site.last.node)[0])
    first, last = buffer.lines.index(first_line), buffer.lines.index(last_line)
    # What earlier edits put at the end of its body is deeper than the statement, and goes with it.
    while last + 1 < len(buffer.lines) and len(buffer.lines[last + 1].indent) > len(indent):
        last += 1
    old = buffer.lines[first : last + 1]
    lost = next((line for line in old if line.kind == "generated" or line.returns), None)
    if lost is not None:
        earlier = lost.owner or lost.returns[0].owner
        raise EditError(
            f"{owner} would replace code in which {earlier} has put a tap; put the replacing edit before it"
        )
    origins = [line.origin for line in old]
    buffer.lines[first : last + 1] = [
        Line(
            line.at(indent),
            origins[min(number, len(origins) - 1)],
            kind="replaced",
            columns_kept=False,
            owner=owner,
        )
        for number, line in enumerate(code)
    ]
    text = "\n".join(line.text for line in code)
    if len(site.first.block.statements) > 1 and not _has_statement(text):
        buffer.changed()  # the block has fewer statements, and must not lose its last one
    else:
        buffer.rewrote("\n".join(line.text for line in old), text)


def _has_statement(text: str) -> bool:
    return bool(ast.parse(text).body)


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
    buffer.changed()
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

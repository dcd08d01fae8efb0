"""Replacing text in a buffer."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from patcher.errors import EditError
from patcher.matching.search import Site, end_of, start_of
from patcher.rewriting.buffer import CodeLine, FunctionBuffer, FunctionView, Line


def replace_range(view: FunctionView, node: cst.CSTNode, new: str) -> None:
    """Put ``new`` in the place of an expression. The number of lines stays the same.

    When the new text has more lines than the old, the further ones join the last line's text: they can only
    come from the matched code itself, whose line breaks are within brackets.
    """
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

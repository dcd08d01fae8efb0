"""Finding the lines of a function that an edit in SGLang's form names: lines of text, whatever they mean in Python."""

from __future__ import annotations

from collections.abc import Sequence

from patcher.match.function_text import FunctionBuffer, Line


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

"""Edits in SGLang's form, which put lines in the place of lines; the rules are those of SGLang's source patcher."""

from __future__ import annotations

from collections.abc import Sequence

from patcher.errors import EditError
from patcher.generated_names import WRAP_FUNCTION
from patcher.match.function_text import FunctionBuffer, Line
from patcher.plan.edits import Code
from patcher.rewrite.inserted_code import written_code
from patcher.rewrite.taps import TargetEdit


def edit_lines(buffer: FunctionBuffer, matched: Sequence[Line], what: TargetEdit) -> None:
    """Carry an edit out on the lines that it names.

    The lines of its code get the indentation of the first matched line, on top of their own. So do those of its match:
    a line that the config indents in another way than the source is indented as the config has it.
    """
    edit = what.edit
    assert isinstance(edit.content, Code)
    indent = _spaces(matched[0].as_written)
    first, last = buffer.lines.index(matched[0]), buffer.lines.index(matched[-1])
    replaces, at_end = edit.action == "replace", edit.action == "after"
    point = what.at(matched[0].origin, {})
    new = [
        Line(
            _indented(text, indent),
            matched[min(number, len(matched) - 1) if replaces else -1 if at_end else 0].origin,
            kind="inserted" if complete and not replaces else "replaced",
            role=None if replaces else "after" if at_end else "before",
            columns_kept=False,
            owner=what.owner,
            indent=indent,
            written=_indented(written, indent),
        )
        for number, (text, written, complete) in enumerate(written_code(edit.content, point))
    ]
    between = buffer.lines[first : last + 1]
    if replaces:
        _refuse_lost_taps(between, what.owner)
        buffer.lines[first : last + 1] = new
    else:
        texts = [_indented(text, indent) for text in edit.patterns[0].strip().splitlines()]
        kept = {
            id(line): line if line.as_written == text else Line(text, line.origin, kind="replaced", columns_kept=False)
            for line, text in zip(matched, texts, strict=True)
        }
        buffer.lines[first : last + 1] = [kept.get(id(line), line) for line in between]
        position = _after_taps(buffer, last + 1) if at_end else first
        buffer.lines[position:position] = new
    buffer.edited_by_lines.append((what.owner, matched[0].origin))
    buffer.changed()


def syntax_error(buffer: FunctionBuffer) -> tuple[int, str] | None:
    """Why a function as it stands is not Python: index of the line, and the message. None: it is."""
    indented = bool(buffer.lines) and buffer.lines[0].text[:1].isspace()
    # A class around it: methods may use ``super()`` and names with two underscores.
    text = ("class _:\n" if indented else "") + buffer.text + "\n"
    try:
        compile(text, "<patched>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        number = (getattr(error, "lineno", None) or 1) - (1 if indented else 0)
        return min(max(number, 1), max(len(buffer.lines), 1)) - 1, getattr(error, "msg", str(error))
    return None


def _refuse_lost_taps(lines: Sequence[Line], owner: str) -> None:
    lost = next(
        (line for line in lines if line.kind == "generated" or line.returns or WRAP_FUNCTION in line.text), None
    )
    if lost is not None:
        earlier = lost.owner or (lost.returns[0].owner if lost.returns else "an earlier edit")
        raise EditError(
            f"{owner} would replace code in which {earlier} has put a tap; put the replacing edit before it"
        )


def _after_taps(buffer: FunctionBuffer, position: int) -> int:
    while position < len(buffer.lines):
        line = buffer.lines[position]
        if line.kind != "generated" or line.role != "after":
            break
        position += 1
    return position


def _indented(text: str, indent: str) -> str:
    return indent + text if text.strip() else ""


def _spaces(text: str) -> str:
    return " " * (len(text) - len(text.lstrip(" ")))

"""What ``suggest`` writes: edits, as the text of a config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from patcher.tappable import TappablePlace


@dataclass(frozen=True)
class SuggestedEdit:
    """One edit of a suggestion."""

    target: str
    place: TappablePlace
    action: Literal["dump", "tags", "step", "end_step"] = "dump"
    name: str = ""
    value: str | None = None
    layer_id: str | None = None
    dims: str | None = None
    condition: str | None = None
    batch: str | None = None
    stack: str | None = None
    """Expression of which of encoder and decoder it is in."""
    inputs: tuple[str, ...] = ()
    operation: str | None = None


def config_text(edits: Sequence[SuggestedEdit], engine: str | None = None, left_out: Sequence[str] = ()) -> str:
    """YAML of a config. ``engine`` is a config that it extends; ``left_out``: calls without a tap, for a comment."""
    lines = [
        "# Written by 'patcher suggest'. Dims are guessed from names and known layers: check them, and add them where",
        '# there are none, such as  dims: "t h"',
    ]
    if engine is not None:
        lines.append(f"extends: {engine}  # a step for each forward pass of the engine")
    elif not any(edit.action == "step" for edit in edits):
        lines.append("# No step begins here: add 'step' where the forward pass of the whole model begins.")
    lines += [f"# Left out, because it is computed of all that is cached: {call}" for call in left_out]
    lines.append("patches:")
    target = ""
    for edit in edits:
        if edit.target != target:
            target = edit.target
            lines += [f"  - target: {target}", "    edits:"]
        lines += _edit_lines(edit)
    return "\n".join(lines) + "\n"


def _edit_lines(edit: SuggestedEdit) -> Iterator[str]:
    place = edit.place
    if edit.action in ("step", "end_step"):
        settings = f"{{batch: {_scalar(edit.batch)}}}" if edit.batch is not None else "true"
        if place.form == "at":
            yield f"      - at: {place.pattern}"
        else:
            yield f"      - match: {_scalar(place.pattern)}"
            yield "        before: true"
        yield f"        {edit.action}: {settings}"
        return
    yield f"      - {place.form}: {_scalar(place.pattern)}"
    if place.count > 1:
        yield f"        nth: {place.nth or 'all'}"
    if edit.action == "tags":
        tags = {"layer_id": edit.layer_id, "stack": edit.stack}
        given = [f"{name}: {_scalar(value)}" for name, value in tags.items() if value is not None]
        yield f"        tags: {{{', '.join(given)}}}"
        return
    fields = [f"name: {_scalar(edit.name)}"]
    if edit.value is not None:
        fields.append(f"value: {_scalar(edit.value)}")
    if edit.dims is not None:
        fields.append(f'dims: "{edit.dims}"')
    if edit.condition is not None:
        fields.append(f"if: {_scalar(edit.condition)}")
    if edit.layer_id is not None:
        fields.append(f"layer_id: {_scalar(edit.layer_id)}")
    if edit.stack is not None:
        fields.append(f"stack: {_scalar(edit.stack)}")
    if edit.inputs:
        fields.append(f"inputs: [{', '.join(edit.inputs)}]")
    if edit.operation is not None:
        fields.append(f"operation: {edit.operation}")
    yield f"        dump: {{{', '.join(fields)}}}"


def _scalar(text: str) -> str:
    if re.fullmatch(r"[$A-Za-z_][\w.]*( = [\w.]+\(\.\.\.\))?|[A-Za-z_][\w.]*\((\.\.\.)?\)", text):
        return text
    return "'" + text.replace("'", "''") + "'"

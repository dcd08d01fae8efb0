"""From one frame to the next, past damage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from dumper.format import frames
from dumper.format.frames import FormatError, Frame, TruncatedError
from tensortap.progress import Advance

KINDS = ("header", "config", "taps", "parallel", "step", "record", "coverage", "repaired", "index")
"""The kinds of this version; others are walked over, but not looked for after damage."""
LARGEST_META = 16 << 20
"""Bytes; a frame is not looked for beyond damage when its meta is larger."""
_START = re.compile(
    rb"(?:[\x93-\x9f]|\xdc[\x00-\xff]{2})(?:"
    + b"|".join(re.escape(bytes((0xA0 | len(kind),)) + kind.encode("ascii")) for kind in KINDS)
    + rb")\xc6",
    re.DOTALL,
)


class Damage(Struct, frozen=True):
    """Bytes that are no frames."""

    offset: int
    end: int
    message: str
    truncated: bool
    """Whether this is the unfinished frame at the end of a file that was cut off."""


Leap = Callable[[int, int], tuple[int, int]]
"""Takes a place in a file, and where the frame before it begins; gives the same of a place further on, before which
there is nothing but frames."""


def frames_and_damage(
    data: Any, advance: Advance = lambda done: None, leap: Leap = lambda offset, last: (offset, last)
) -> Iterator[Frame | Damage]:
    """All frames of a file in order, and what lies between them when it cannot be read; ends before the footer.

    ``data`` is bytes or a mapped file; ``advance`` takes the bytes of each frame once it was used. The metadata of
    every frame that is yielded matches its checksum; payloads are not read. After damage the next frame is looked for;
    the work for that is bounded by a few times the length. Frames that ``leap`` knows are not yielded.
    """
    offset, last = leap(0, 0)
    budget = 4 * len(data) + (1 << 20)
    while offset < len(data) and not _is_end(data, offset):
        try:
            frame = frames.decode_frame(data, offset)
        except FormatError as error:
            found, budget = _next_frame(data, offset + 1, budget)
            end = len(data) if found is None else found
            cut_off = found is None and (isinstance(error, TruncatedError) or _begins_footer(data, offset))
            cut_off = cut_off and not _was_footer(data, offset, last)
            yield Damage(offset, end, str(error), cut_off)
            advance(end - offset)
            offset = end
        else:
            yield frame
            advance(frame.end - offset)
            last, offset = offset, frame.end
        offset, last = leap(offset, last)


def _was_footer(data: Any, offset: int, index_offset: int) -> bool:
    """Whether what is left is the footer behind the last frame, but for some bytes."""
    rest, footer = bytes(data[offset : offset + frames.FOOTER_BYTES + 1]), frames.encode_footer(index_offset)
    return len(rest) == len(footer) and 2 * sum(map(int.__eq__, rest, footer)) > len(footer)


def _begins_footer(data: Any, offset: int) -> bool:
    """Whether what is left is the beginning of a footer, and not all of one."""
    rest, start = bytes(data[offset : offset + frames.FOOTER_BYTES]), frames.encode_footer(0)[:8]
    return len(rest) < frames.FOOTER_BYTES and rest[: len(start)] == start[: len(rest)]


def _is_end(data: Any, offset: int) -> bool:
    return offset + frames.FOOTER_BYTES == len(data) and frames.decode_footer(data, offset) is not None


def _find(data: Any, position: int) -> tuple[int, int] | None:
    """Where a frame seems to begin, and where its kind ends."""
    if hasattr(data, "search"):  # no bytes that are there, but what reads them as they are asked for
        place: tuple[int, int] | None = data.search(_START, position)
        return place
    found = _START.search(data, position)
    return None if found is None else found.span()


def _next_frame(data: Any, start: int, budget: int) -> tuple[int | None, int]:
    """The offset of the next intact frame, None when there is none; and what is left of the bytes that may be read."""
    position = start
    while budget > 0 and (found := _find(data, position)) is not None:
        candidate, end = found
        length = int.from_bytes(bytes(data[end : end + 4]), "big")
        if length <= LARGEST_META:
            budget -= length + 64
            try:
                frames.decode_frame(data, candidate)
            except FormatError:
                pass
            else:
                return candidate, budget
        position = candidate + 1
    if _is_end(data, len(data) - frames.FOOTER_BYTES) and len(data) - frames.FOOTER_BYTES >= start:
        return len(data) - frames.FOOTER_BYTES, budget
    return None, budget

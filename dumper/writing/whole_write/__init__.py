"""Buffers written to a file, all of them.

Where the module is compiled they are written in pieces of a megabyte, and the interpreter lock is let go from the first
to the last. Linux 6.18 takes up to eight times as long to write more than 2 MiB to ext4 in one call, since it looks for
memory in pieces as large; and to ask for the lock after each piece would take longer than writing it, in a process that
runs Python meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.writing.whole_write import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None
MOST_VECTORS = 512
"""Buffers per ``writev``; Linux allows 1024."""


def in_python(descriptor: int, buffers: Sequence[Any]) -> None:
    """The same without the compiled module: in as few calls as there can be."""
    for first in range(0, len(buffers), MOST_VECTORS):
        some = buffers[first : first + MOST_VECTORS]
        written = os.writev(descriptor, some)
        if written < sum(map(len, some)):
            _write_rest(descriptor, some, written)


def _write_rest(descriptor: int, buffers: Sequence[Any], written: int) -> None:
    for buffer in buffers:
        rest = memoryview(buffer)
        skipped = min(written, len(rest))
        written -= skipped
        rest = rest[skipped:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


write_whole = in_python if _compiled is None else _compiled.write_whole
"""``write_whole(descriptor, buffers)`` writes contiguous bytes-like objects one after the other. Raises OSError, after
which some of them may have been written."""

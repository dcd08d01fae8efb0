"""Mapped files that others cut while they are read.

To touch what is gone of a mapped file ends the process (SIGBUS). The commands that read recordings take zeros in its
place, note that they did, and say that what they read is not what was recorded. This is a signal handler of the whole
process: it is for programs of our own, never for the one that is recorded. Without the compiled module the process
ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tensortap.compiled import load

if TYPE_CHECKING:
    from tensortap.lost_pages import _compiled
else:
    _compiled = load(f"{__name__}._compiled")


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Pages that are lost in the block are counted, in this process and its forks."""
    taken = _compiled is not None and _compiled.watch()
    try:
        yield
    finally:
        if taken:
            _compiled.leave()


def lost_pages() -> int:
    """How many there were so far in this process. What was read while it grew is not to be believed."""
    return 0 if _compiled is None else _compiled.count()

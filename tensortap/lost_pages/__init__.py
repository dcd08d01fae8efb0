"""Mapped files that others cut while they are read.

To touch what is gone of a mapped file ends the process (SIGBUS). Who reads recordings takes zeros in its place, notes
that it did, and says that what it read is not what was recorded. It is a signal handler of the whole process: the
commands keep it while they work, a function that somebody else's program calls only until it returns, and only for the
thread that called it; never the process that is recorded. Without the compiled module the process ends.
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
def watching(*, everywhere: bool = False) -> Iterator[None]:
    """Pages that this thread loses in the block are counted, and those of its forks. ``everywhere``: those of all
    threads, for processes that are our own."""
    taken = _compiled is not None and _compiled.watch(everywhere)
    try:
        yield
    finally:
        if taken:
            _compiled.leave(everywhere)


def lost_pages() -> int:
    """How many there were so far in this process. What was read while it grew is not to be believed."""
    return 0 if _compiled is None else _compiled.count()

"""Forks of a process that records: none happens while a thread opens the recording, where that can be had."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Lock(Protocol):
        """A lock that can be waited for."""

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
        def release(self) -> None: ...


LONGEST_WAIT = 0.5
"""Seconds."""


def watch_forks(lock: Callable[[], Lock], forked: Callable[[bool], None]) -> None:
    """Hold ``lock()`` while this process forks, and call ``forked`` in the child, with whether it was held.

    Whoever opens the recording holds the lock: a module that is half imported stays locked in the child. It is not
    waited for for long: who opens may wait for a lock that the fork holds (that of ``logging``).
    """
    held: list[Lock] = []

    def before() -> None:
        mine = lock()
        if mine.acquire(timeout=LONGEST_WAIT):
            held.append(mine)

    def after_in_parent() -> None:
        if held:
            held.pop().release()

    def after_in_child() -> None:
        was_held = bool(held)
        held.clear()
        forked(was_held)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)

"""Whether compiled code lets go of the interpreter lock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

TRIES = 10
"""The processors may be busy with other processes for as long as the work takes."""
MOST_TURNS = 1000
"""After which the other thread is waited for: it would get the lock back no sooner than it could be interrupted."""


def turns_beside(work: Callable[[], object]) -> int:
    """How often this thread gets to run while another one does ``work``, at most ``MOST_TURNS``; next to never if that
    keeps the lock. The most of some tries."""
    most = 0
    for _ in range(TRIES):
        most = max(most, _turns_beside(work))
        if most == MOST_TURNS:
            break
    return most


def _turns_beside(work: Callable[[], object]) -> int:
    begun, ended, turns = threading.Event(), threading.Event(), 0

    def run() -> None:
        begun.set()
        work()
        ended.set()

    before = sys.getswitchinterval()
    sys.setswitchinterval(10)  # a thread that keeps the lock is not interrupted
    try:
        thread = threading.Thread(target=run)
        thread.start()
        begun.wait()
        while not ended.is_set() and turns < MOST_TURNS:
            turns += 1
        thread.join()
    finally:
        sys.setswitchinterval(before)
    return turns

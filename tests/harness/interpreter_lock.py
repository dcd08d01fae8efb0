"""Whether compiled code lets go of the interpreter lock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def turns_beside(work: Callable[[], object]) -> int:
    """How often this thread gets to run while another one does ``work``; next to never if that keeps the lock."""
    running, turns = threading.Event(), 0

    def run() -> None:
        running.set()
        work()
        running.clear()

    before = sys.getswitchinterval()
    sys.setswitchinterval(10)  # a thread that keeps the lock is not interrupted
    try:
        thread = threading.Thread(target=run)
        thread.start()
        running.wait()
        while running.is_set():
            turns += 1
        thread.join()
    finally:
        sys.setswitchinterval(before)
    return turns

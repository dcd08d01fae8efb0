"""SIGTERM ends a Python process at once, past ``atexit``: complete the files first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

LONGEST_CLOSE = 10.0
"""Seconds after which a process that was asked to end does so, whatever the disk is doing."""


def close_on_termination(close: Callable[[], None]) -> None:
    """Call ``close`` when SIGTERM comes, then die of it as before.

    Does nothing when the program has a handler of its own (its way out goes through ``atexit``) or outside the main
    thread, where Python cannot set handlers.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    closed = threading.Event()
    begun: list[threading.Thread] = []

    def close_and_end() -> None:
        closing = threading.Thread(target=close, name="tensortap-close", daemon=True)
        closing.start()
        closing.join(timeout=LONGEST_CLOSE)
        closed.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        # The handler interrupts code that may hold the locks that closing needs. So it waits for nothing: other
        # threads close, the interrupted code goes on meanwhile, and a second signal ends the process.
        if closed.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not begun:
            begun.append(threading.Thread(target=close_and_end, name="tensortap-end", daemon=True))
            begun[0].start()

    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGTERM, handle)

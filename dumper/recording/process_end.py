"""The ways in which a process ends in order, so that its files are completed first."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

LONGEST_CLOSE = 10.0
"""Seconds after which a process that was asked to end does so, whatever the disk is doing."""


_registered: dict[str, int] = {}


def call_at_end(close: Callable[[], None]) -> None:
    """Call ``close`` once at the end of this process, be it a ``multiprocessing`` child or ended by SIGTERM."""
    if _registered.get("process") == os.getpid():
        return
    _registered["process"] = os.getpid()
    atexit.register(close)
    if "multiprocessing.util" in sys.modules:
        # Children of multiprocessing leave through os._exit, past atexit.
        sys.modules["multiprocessing.util"].Finalize(None, close, exitpriority=10)
    close_on_termination(close)


def close_on_termination(close: Callable[[], None]) -> None:
    """Call ``close`` when SIGTERM comes, then die of it as before: Python would end at once, past ``atexit``.

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

"""SIGTERM ends a Python process at once, past ``atexit``: complete the files first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def close_on_termination(close: Callable[[], None]) -> None:
    """Call ``close`` when SIGTERM comes, then die of it as before.

    Does nothing when the program has a handler of its own (its way out goes through ``atexit``) or outside the main
    thread, where Python cannot set handlers.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return

    def handle(number: int, frame: FrameType | None) -> None:
        # The interrupted code may hold the very locks that close needs, so another thread closes.
        closing = threading.Thread(target=close, name="tensortap-close", daemon=True)
        closing.start()
        closing.join(timeout=10.0)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGTERM, handle)

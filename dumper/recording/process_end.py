"""The ways in which a process ends in order, so that its files are completed first.

At SIGTERM Python would end at once, past ``atexit``. So a handler is set, where the program has none, and a thread
waits beside it, which completes the files and then ends the process as the signal would have:

- The thread is woken by ``signal.set_wakeup_fd``, which C code writes to when the signal comes. A main thread that
  hangs in C code (a collective whose other ranks are gone) runs no handler, and must still die of SIGTERM.
- The handler runs on the main thread, between two instructions of whatever was under way, perhaps with one of our locks
  held. It waits for the end right there, so that the model makes no more steps, but only where none of our code is
  interrupted; else the main thread goes on until that code has returned.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

LONGEST_CLOSE = 10.0
"""Seconds after which a process that was asked to end does so, whatever the disk is doing."""
_AGAIN_SECONDS = 0.005
"""Between two attempts to stop the main thread."""
_HOLDS_LOCKS = ("dumper.", "logging", "importlib.", "_frozen_importlib")
"""Modules whose code may hold a lock that closing needs."""

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
    """Call ``close`` when SIGTERM comes, then die of it as before.

    Does nothing when the program has a handler of its own (its way out goes through ``atexit``) or outside the main
    thread, where Python cannot set handlers.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    with contextlib.suppress(ValueError, OSError, RuntimeError):  # or there may be no more threads
        _Termination(close).install()


class _Termination:
    """The handler of SIGTERM and the thread beside it."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._process = os.getpid()
        self._over = threading.Event()
        self._parked = False
        self._main = threading.main_thread().ident or 0
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def install(self) -> None:
        # First: without the thread nothing would come of the handler.
        threading.Thread(target=self._wait, name="tensortap-end", daemon=True).start()
        previous = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        if previous != -1:
            # An event loop has it; then the handler alone wakes the thread.
            signal.set_wakeup_fd(previous, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._handle)
        os.register_at_fork(after_in_child=self._forget_in_child)

    def _forget_in_child(self) -> None:
        """The child of a fork has neither the thread nor anything to close: SIGTERM is what it was."""
        with contextlib.suppress(ValueError, OSError):
            if signal.getsignal(signal.SIGTERM) == self._handle:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, self._waker.fileno()):
                signal.set_wakeup_fd(current)
        self._woken.close()
        self._waker.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """On the main thread."""
        if self._over.is_set():
            _die()
        with contextlib.suppress(OSError):
            self._waker.send(bytes((signal.SIGTERM,)))
        caller = _frame_without_locks(frame)
        if caller is frame:
            self._park()
        elif caller is not None:
            # Stopped at its next line, when our code has returned.
            caller.f_trace = self._park
            sys.settrace(_trace_nothing)

    def _park(self, *event: object) -> None:
        """Wait for the end, on the main thread."""
        if not self._parked:
            self._parked = True
            self._over.wait(LONGEST_CLOSE + 1)
            _die()

    def _wait(self) -> None:
        """In the thread: until SIGTERM comes."""
        while received := self._woken.recv(4096):
            # A handler that the program has set since is the only one.
            if signal.SIGTERM in received and signal.getsignal(signal.SIGTERM) == self._handle:
                break
        closing = threading.Thread(target=self._close, name="tensortap-close", daemon=True)
        try:
            closing.start()
        except RuntimeError:  # there may be no more threads: this one closes, however long it takes
            self._close()
        deadline = time.monotonic() + LONGEST_CLOSE
        while closing.is_alive() and time.monotonic() < deadline:
            if not self._parked:
                # Python runs the handler once more, at another moment.
                signal.pthread_kill(self._main, signal.SIGTERM)
            closing.join(_AGAIN_SECONDS)
        self._over.set()
        _die()


def _frame_without_locks(frame: FrameType | None) -> FrameType | None:
    """The innermost frame with no code that may hold locks around it; None where there is none."""
    found = frame
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_HOLDS_LOCKS):
            found = frame.f_back
        frame = frame.f_back
    return found


def _trace_nothing(*event: object) -> None:
    """Tracing has to be on for the one frame that is traced."""


def _die() -> None:
    """End the process by SIGTERM, from any thread: Python sets handlers from the main one alone."""
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGTERM, None)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    os._exit(128 + signal.SIGTERM)

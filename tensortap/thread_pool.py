"""Threads that do several things at a time, as many of them as can be had."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadPool(ThreadPoolExecutor):
    """Where a thread cannot be started (a control group allows so many and no more), what it was to do is done by those
    that there are, or at once by the thread that submits it."""

    def submit(self, function: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """See ``Executor``."""
        future: Future[T] = Future()
        taken = threading.Lock()

        def do() -> None:
            if not taken.acquire(blocking=False) or not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments, **named))
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        try:
            super().submit(do)
        except RuntimeError:
            do()  # it is in the queue by now, of which other threads may take it
        return future

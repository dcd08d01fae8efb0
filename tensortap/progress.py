"""A progress bar with an estimate, in a terminal, for what takes so long that somebody waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 2.0
"""Seconds before a bar appears."""
BETWEEN = 0.1
"""Seconds between two changes of a bar."""

Item = TypeVar("Item")
Advance = Callable[[int], None]
"""Takes how much was done since the last call."""
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Begins a piece of work: takes what is done, in a word ("reading"), and how much of it there is, in any unit."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Progress that nobody sees."""
    yield lambda done: None


def in_terminal(console: Console | None = None, *, patience: float = PATIENCE) -> Progress:
    """Progress as a bar on ``console``, by default on standard error; ``silent`` where that is no terminal.

    The bar appears after ``patience`` seconds and is gone at the end. What is printed meanwhile stands above it.
    """
    if console is None and not sys.stderr.isatty():
        return silent
    if console is not None and not console.is_terminal:
        return silent
    return partial(_bar, console=console, patience=patience)


def watched(items: Sequence[Item], what: str, progress: Progress) -> Iterator[Item]:
    """The items, one after the other, with progress."""
    with progress(what, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _bar(what: str, total: int, *, console: Console | None, patience: float) -> Iterator[Advance]:
    # rich takes 0.1 s to import, which most commands do not last.
    begun = time.monotonic()
    changed = begun - BETWEEN
    done = 0
    change: Callable[[], None] | None = None
    end: Callable[[], None] = lambda: None  # noqa: E731

    def advance(amount: int) -> None:
        nonlocal done, changed, change, end
        done += amount
        now = time.monotonic()
        if now - begun < patience or now - changed < BETWEEN:
            return
        changed = now
        if change is None:
            change, end = _started(what, total, console, lambda: (done, time.monotonic() - begun))
        change()

    try:
        yield advance
    finally:
        end()


def _started(
    what: str, total: int, console: Console | None, state: Callable[[], tuple[int, float]]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A bar that is shown, as two functions: to draw it anew, and to take it away. ``state`` gives what is done and the
    seconds that it took."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    # Drawn where it changes: a thread that draws it may not be had, and would keep processes from being forked.
    bar = Progress(*columns, console=console or Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task(what, total=total, left="")
    bar.start()

    def change() -> None:
        done, seconds = state()
        left = "" if not done else f"about {_duration(seconds * max(0, total - done) / done)} left"
        bar.update(task, completed=done, left=left, refresh=True)

    return change, bar.stop


def _duration(seconds: float) -> str:
    """For people: ``8 s``, ``3 min``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"

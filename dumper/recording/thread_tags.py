"""Tags that a thread adds to all that it records."""

from __future__ import annotations

# What ``threading.local`` is; importing all of threading would cost every patched process.
from _thread import _local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class ThreadTags(_local):
    """The tags of the thread that asks."""

    def __init__(self) -> None:
        self.tags: Mapping[str, Any] = {}

    def adding(self, tags: Mapping[str, Any]) -> AddedTags:
        """A context manager that adds tags to those of the thread that enters it."""
        return AddedTags(self, tags)


class AddedTags:
    """Adds tags inside a ``with`` block."""

    __slots__ = ("_added", "_before", "_of_thread")

    def __init__(self, of_thread: ThreadTags, added: Mapping[str, Any]) -> None:
        self._of_thread = of_thread
        self._added = added
        self._before: list[Mapping[str, Any]] = []

    def __enter__(self) -> None:
        before = self._of_thread.tags
        self._before.append(before)
        self._of_thread.tags = {**before, **self._added}

    def __exit__(self, *exception: object) -> None:
        self._of_thread.tags = self._before.pop()

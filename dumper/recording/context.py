"""What surrounds a record: the step under way, and the tags that its thread adds."""

from __future__ import annotations

# What ``threading.local`` is; importing all of threading would cost every patched process.
from _thread import _local

from dumper.recording.compiled import TRACED, Tracing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class Steps:
    """Counts steps from 0. Changed under the recorder's lock alone."""

    __slots__ = ("_batch", "_layout", "announced", "begun", "explicit", "inside", "number", "tags")

    def __init__(self) -> None:
        self.explicit = False
        """Whether a ``step`` tap is installed: what comes outside a step then belongs to none."""
        self.reset()

    def reset(self) -> None:
        """Before the first step of a run."""
        self.number = 0
        self.begun = False
        """Whether ``step`` was ever called."""
        self.inside = not self.explicit
        self.announced = False
        """Whether the file knows of the step under way."""
        self.tags: Mapping[str, Any] = {}
        self.forget_batch()

    def make_explicit(self) -> None:
        """A ``step`` tap was installed."""
        self.explicit = True
        if not self.begun:
            self.inside = False

    def begin(self, batch: Any, layout: Any, tags: Mapping[str, Any]) -> None:
        """The next step. What was recorded before the first was step 0 (SGLang's style: dump, step, dump)."""
        if self.begun or self.announced:
            self.number += 1
        self.begun = self.inside = True
        self.announced = False
        self._batch: Any = batch
        self._layout: Any = layout
        self.tags = tags

    def end(self) -> None:
        """The end of the step under way; the next begins at once where steps are not explicit."""
        self.forget_batch()
        if self.explicit:
            self.inside = False

    @property
    def unannounced(self) -> bool:
        """Whether there is a step under way of which the file knows nothing yet."""
        return self.inside and not self.announced and self.begun

    @property
    def batch_only(self) -> Any:
        """The engine's batch when it is what tells the layout, else None."""
        return self._batch if self._layout is None else None

    def take_layout(self) -> Any:
        """The layout of the step, given or read from the batch, which is let go of. Never waits for a device."""
        layout, batch = self._layout, self._batch
        self.forget_batch()
        if layout is None and batch is not None:
            from dumper.adapters import read_batch

            layout = read_batch(batch)
        return layout

    def forget_batch(self) -> None:
        """Let go of the engine's objects."""
        self._batch = self._layout = None


class StepScope:
    """What ``step()`` returns: ends the step when a ``with`` block is left, and does nothing otherwise."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def __enter__(self) -> StepScope:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()


class ThreadTags(_local):
    """The tags of the thread that asks."""

    def __init__(self) -> None:
        self.tags: Mapping[str, Any] = {}

    def adding(self, tags: Mapping[str, Any]) -> AddedTags:
        """A context manager that adds tags to those of the thread that enters it."""
        return AddedTags(self, tags)


class AddedTags:
    """Adds tags inside a ``with`` block."""

    __slots__ = ("_added", "_before", "_of_thread", "_traced_before")

    def __init__(self, of_thread: ThreadTags, added: Mapping[str, Any]) -> None:
        self._of_thread = of_thread
        self._added = added
        self._before: list[Mapping[str, Any]] = []
        self._traced_before: list[Mapping[str, Any]] = []

    def __enter__(self) -> None:
        before = self._of_thread.tags
        self._before.append(before)
        self._of_thread.tags = {**before, **self._added}
        if Tracing.is_compiling():
            self._traced_before.append(TRACED.tags)
            TRACED.tags = {**TRACED.tags, **self._added}

    def __exit__(self, *exception: object) -> None:
        self._of_thread.tags = self._before.pop()
        if self._traced_before:
            TRACED.tags = self._traced_before.pop()

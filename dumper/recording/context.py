"""What surrounds a record: the step under way, and the tags that its thread, or the call that it comes from, adds."""

from __future__ import annotations

import sys

# What ``threading.local`` is; importing all of threading would cost every patched process.
from _thread import _local

from dumper.recording.compiled import TRACED, Tracing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from dumper.adapters.protocol import PassSize


class Steps:
    """Counts steps from 0. Changed under the recorder's lock alone."""

    __slots__ = (
        "__weakref__",
        "_batch",
        "_layout",
        "announced",
        "begun",
        "ends",
        "explicit",
        "inside",
        "is_unknown",
        "number",
        "open",
        "size",
        "tags",
        "updates",
        "updates_before",
        "watches_optimizers",
    )

    def __init__(self) -> None:
        self.explicit = False
        """Whether a ``step`` tap is installed: what comes outside a step then belongs to none."""
        self.watches_optimizers = False
        self.reset()

    def reset(self) -> None:
        """Before the first step of a run."""
        self.number = 0
        self.begun = False
        """Whether ``step`` was ever called."""
        self.inside = not self.explicit
        self.announced = False
        """Whether the file knows of the step under way."""
        self.open = False
        """Whether the step under way has not been ended."""
        self.ends = False
        """Whether the end of a step was ever told."""
        self.is_unknown = False
        """Whether the step under way began while nothing was recorded, and nobody knows its tokens."""
        self.tags: Mapping[str, Any] = {}
        self.size: PassSize | None = None
        """Rows of the step under way, once it is announced."""
        self.updates = self.updates_before = 0
        """How often optimizers have updated weights since the run was begun: until now, before the step under way."""
        self.forget_batch()

    def watch_optimizers(self) -> None:
        """Count what optimizers do from now on: with other weights small differences become larger ones."""
        optimizers = sys.modules.get("torch.optim.optimizer")
        register = getattr(optimizers, "register_optimizer_step_post_hook", None)
        if register is not None:
            import weakref

            self.watches_optimizers = True
            steps = weakref.ref(self, lambda _: handle.remove())

            def count(*arguments: object) -> None:
                found = steps()
                if found is not None:
                    found.updates += 1

            handle = register(count)

    def make_explicit(self) -> None:
        """A ``step`` tap was installed."""
        self.explicit = True
        if not self.begun:
            self.inside = False

    def begin(self, batch: Any, layout: Any, tags: Mapping[str, Any]) -> None:
        """The next step. What was recorded before the first was step 0 (SGLang's style: dump, step, dump)."""
        if self.begun or self.announced:
            self.number += 1
        if not self.watches_optimizers:
            self.watch_optimizers()
        self.updates_before = self.updates
        self.begun = self.inside = self.open = True
        self.announced = self.is_unknown = False
        self.size = None
        self._batch: Any = batch
        self._layout: Any = layout
        self.tags = tags

    def end(self) -> None:
        """The end of the step under way; the next begins at once where steps are not explicit."""
        self.forget_batch()
        self.open, self.ends = False, True
        if self.explicit:
            self.inside = False

    @property
    def unannounced(self) -> bool:
        """Whether there is a step under way of which the file knows nothing yet."""
        return self.inside and not self.announced and self.begun

    @property
    def batch(self) -> Any:
        """The engine's batch of the step under way, as long as it is held."""
        return self._batch

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

    in_use = False
    """Whether any thread of the process ever added tags; of the class, since it is asked for every record."""

    def __init__(self) -> None:
        self.tags: Mapping[str, Any] = {}

    def of_backward_pass(self) -> Mapping[str, Any]:
        """The tags of the thread that began the backward pass which this thread computes: a device has a thread of its
        own for that, and what activation checkpointing computes once more is recorded there."""
        internals = _of_torch()
        if internals is None or internals._current_graph_task_id() == -1 or not internals._is_key_in_tls(_KEY):
            return _NONE
        tags: Mapping[str, Any] = internals._get_obj_in_tls(_KEY).get(id(self), _NONE)
        return tags

    def put(self, tags: Mapping[str, Any]) -> None:
        """Have the thread's tags be these; a backward pass that it begins takes them along."""
        self.tags = tags
        type(self).in_use = True
        internals = _of_torch()
        if internals is not None:
            others = internals._get_obj_in_tls(_KEY) if internals._is_key_in_tls(_KEY) else {}
            _stash(internals, {**others, id(self): tags})

    def adding(self, tags: Mapping[str, Any]) -> AddedTags:
        """A context manager that adds tags to those of the thread that enters it."""
        return AddedTags(self, tags)


_KEY = "tensortap.tags"
"""Under which torch carries tags from a thread to those that compute its backward passes."""
_NONE: Mapping[str, Any] = {}


def _stash(internals: Any, tags_by_recorder: Mapping[int, Mapping[str, Any]]) -> None:
    """Hand an object to torch, which keeps it until the thread hands it another one."""
    references = sys.getrefcount(tags_by_recorder)
    internals._stash_obj_in_tls(_KEY, tags_by_recorder)
    if sys.getrefcount(tags_by_recorder) == references:
        # torch 2.11 and earlier take no reference of their own, and give one back all the same.
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(tags_by_recorder))


def _of_torch() -> Any:
    """torch's internals, where they carry objects from thread to thread; None before torch is imported."""
    internals = getattr(sys.modules.get("torch"), "_C", None)
    return internals if hasattr(internals, "_stash_obj_in_tls") else None


class AddedTags:
    """Adds tags inside a ``with`` block."""

    __slots__ = ("_added", "_before", "_of_thread", "_traced_before")

    def __init__(self, of_thread: ThreadTags, added: Mapping[str, Any]) -> None:
        self._of_thread = of_thread
        self._added = added
        self._before: list[Mapping[str, Any]] = []
        self._traced_before: list[Mapping[str, Any]] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the tags in every call of it."""
        import functools

        @functools.wraps(function)
        def tagged(*args: Any, **kwargs: Any) -> Any:
            # One for each call: threads may make them at the same time.
            with AddedTags(self._of_thread, self._added):
                return function(*args, **kwargs)

        return tagged

    def __enter__(self) -> None:
        before = self._of_thread.tags
        self._before.append(before)
        if not Tracing.is_compiling():
            self._of_thread.put({**before, **self._added})
        else:
            self._of_thread.tags = {**before, **self._added}
            self._traced_before.append(TRACED.tags)
            TRACED.tags = {**TRACED.tags, **self._added}

    def __exit__(self, *exception: object) -> None:
        if not self._traced_before:
            self._of_thread.put(self._before.pop())
        else:
            self._of_thread.tags = self._before.pop()
            TRACED.tags = self._traced_before.pop()


class TagsOfCalls(AddedTags):
    """A decorator: ``tags_of`` gives the tags of a call from its first argument."""

    __slots__ = ("_complain", "_tags_of")

    def __init__(
        self,
        of_thread: ThreadTags,
        added: Mapping[str, Any],
        tags_of: Callable[[Any], Mapping[str, Any]],
        complain: Callable[[Exception], None],
    ) -> None:
        """``complain`` is told why the tags of a call could not be found; the call is made without them."""
        super().__init__(of_thread, added)
        self._tags_of = tags_of
        self._complain = complain

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import functools

        of_thread, added, tags_of, complain = self._of_thread, self._added, self._tags_of, self._complain

        @functools.wraps(function)
        def tagged(*args: Any, **kwargs: Any) -> Any:
            try:
                found = {**added, **tags_of(args[0])}
            except Exception as error:
                complain(error)
                found = dict(added)
            with AddedTags(of_thread, found):
                return function(*args, **kwargs)

        return tagged

"""Taps: places in the source where values are recorded, as the patcher's generated code knows them."""

from __future__ import annotations

import os

from dumper.recording.compiled import Tracing
from dumper.recording.in_graph import count_in_graph, record_in_graph
from dumper.recording.shortcut import TapCall, Way
from dumper.values.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Protocol

    Module = tuple[str, tuple[Mapping[str, Any], ...], Mapping[str, Any]]
    """What ``install_taps`` is called with."""

    class Recorder(Protocol):
        """The part of the recorder that taps need."""

        number: int | None
        way: Way

        def submit(
            self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None = None
        ) -> None: ...

        def begin_step(self, batch: Any, layout: Any, tags: Mapping[str, Any], tap: str | None = None) -> None: ...

        def end_step(self, tap: str | None = None) -> None: ...

        def ctx(self, **tags: Any) -> AbstractContextManager[None]: ...

        def tap_failed(self, tap: Tap) -> None: ...

        def value_lost(self, source: Source, error: Exception) -> None: ...


class _NothingAdded:
    """A context that does nothing."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception: object) -> None:
        return None


_NOTHING_ADDED = _NothingAdded()


class RecordCall(TapCall):
    """What ``record`` of a tap is: records a value under the tap's own name. Never raises."""

    __slots__ = ("_recorder", "_source")
    _recorder: Recorder
    _source: Source

    def __new__(cls, recorder: Recorder, source: Source) -> RecordCall:
        made = super().__new__(cls, recorder.way, source)
        made._recorder, made._source = recorder, source
        return made

    def __call__(self, value: Any, dims: str | None = None, /, **tags: Any) -> None:
        """What compiled code and values that come for the first time, or with anything to be decided, go through."""
        if Tracing.by_dynamo() or Tracing.flags._is_compiling_flag:
            record_in_graph(self._recorder.number, self._source, value, dims, tags)
            return
        self.fired += 1
        self._recorder.submit(self._source, value, dims, tags)

    def lost(self, error: Exception) -> None:
        """A value that was to come as others before was lost, and counted."""
        self._recorder.value_lost(self._source, error)


class Tap:
    """One tap. Generated code reads ``on`` before it evaluates anything; no method raises."""

    __slots__ = ("_recorder", "_source", "failures", "id", "kind", "name", "on", "record")

    def __init__(self, recorder: Recorder, info: Mapping[str, Any]) -> None:
        """``info``: the entry of ``install_taps``, plain values (docs/contracts.md, contract 1)."""
        self._recorder = recorder
        self.id: str = info["id"]
        self.name: str = info["name"]
        self.kind: str = info.get("kind", "dump")
        self._source = Source.of(self.name, info.get("level"), bool(info.get("grad", False)), self.id)
        self.on = False
        self.failures = 0
        self.record = RecordCall(recorder, self._source)

    @property
    def fired(self) -> int:
        """How often it was reached while something was recorded."""
        return self.record.fired

    @fired.setter
    def fired(self, times: int) -> None:
        self.record.fired = times

    def dump(
        self,
        name: str,
        value: Any,
        save: Any = True,
        dims: str | None = None,
        dims_grad: str | None = None,
        *,
        step: int | None = None,
        grafter_extras: Any = None,
        **tags: Any,
    ) -> None:
        """Record a value under a name that the code at the tap gives: ``dumper.dump`` with what the tap knows."""
        own = self._source
        level, grad = tags.pop("level", own.level), bool(tags.pop("grad", own.grad))
        if isinstance(save, str):
            dims = save
        if Tracing.is_compiling():
            # Made here: what remembers sources would change under the guards of the graph.
            source = Source(name, level, grad, own.tap, "value")
            if save:
                record_in_graph(self._recorder.number, source, value, dims, tags)
            return
        self.fired += 1
        if save:
            source = Source.of(name, level, grad, own.tap, gradient_dims=dims_grad)
            self._recorder.submit(source, value, dims, tags, step)

    def step(self, batch: Any = None, **tags: Any) -> None:
        """``dumper.step`` from a tap of kind ``step``."""
        # In a graph, whose code does not run, the recorder counts.
        if not Tracing.is_compiling():
            self.fired += 1
        self._recorder.begin_step(batch, None, tags, self.id)

    def end_step(self) -> None:
        """``dumper.end_step`` from a tap of kind ``step``."""
        if not Tracing.is_compiling():
            self.fired += 1
        self._recorder.end_step(self.id)

    def tagging(self, tags: Callable[[], Mapping[str, Any]]) -> AbstractContextManager[None]:
        """A context in which everything that this thread records gets further tags, where they can be evaluated."""
        if self.on:
            try:
                added = self._recorder.ctx(**tags())
                if Tracing.is_compiling():
                    count_in_graph(self._recorder.number, self.id)
                else:
                    self.fired += 1
                return added
            except Exception:
                self.failed()
        return _NOTHING_ADDED

    def failed(self) -> None:
        """The expression of the value or of a tag raised; called while the exception is being handled."""
        self.failures += 1
        self._recorder.tap_failed(self)


def planned_taps() -> tuple[Mapping[str, Any], ...]:
    """The taps that the processes of this command should install (docs/contracts.md), each marked as ``planned``."""
    path = os.environ.get("TENSORTAP_PLANNED_TAPS")
    if not path:
        return ()
    import json

    try:
        with open(path, encoding="utf-8") as file:
            taps = json.load(file)
    except (OSError, ValueError):
        return ()
    return tuple({**tap, "planned": True} for tap in taps if isinstance(tap, dict)) if isinstance(taps, list) else ()


class TapTable:
    """All taps of a process."""

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self._taps: list[Tap] = []
        self._by_id: dict[str, Tap] = {}

    def __iter__(self) -> Iterator[Tap]:
        return iter(list(self._taps))

    def install(self, recorder: Recorder, module: Module) -> tuple[Tap, ...]:
        """Make the taps of a module."""
        installed = tuple(Tap(recorder, info) for info in module[1])
        self.modules.append(module)
        self._taps.extend(installed)
        self._by_id.update((tap.id, tap) for tap in installed)
        return installed

    def of_modules(
        self,
        model: str,
        paths: Sequence[str],
        install: Callable[[str, tuple[Mapping[str, Any], ...], Mapping[str, Any]], tuple[Tap, ...]],
    ) -> list[Tap]:
        """The taps of modules by path; those that are known already are used again, the others installed."""
        names = {f"attach({model}):{path}": path for path in paths}
        install(
            "attach", tuple({"id": name, "name": path} for name, path in names.items() if name not in self._by_id), {}
        )
        return [self._by_id[name] for name in names]

    def switch(self, on: bool) -> None:
        """Have generated code record, or not."""
        for tap in self._taps:
            tap.on = on

    def known(self, tap: str | None) -> Tap | None:
        """The tap of an id."""
        return self._by_id.get(tap or "")

    def count(self, tap: str | None, times: int) -> None:
        """Correct how often a tap fired that is known by its id alone."""
        known = self._by_id.get(tap or "")
        if known is not None:
            known.fired += times

    def coverage(self) -> dict[str, dict[str, int]]:
        """How often each tap fired, and how often it failed if it did; a module that ran twice has its taps twice."""
        fired: dict[str, int] = {}
        failed: dict[str, int] = {}
        for tap in self:
            fired[tap.id] = fired.get(tap.id, 0) + tap.fired
            if tap.failures:
                failed[tap.id] = failed.get(tap.id, 0) + tap.failures
        return {"fired": fired, "failed": failed}

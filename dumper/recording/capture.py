"""Records in memory instead of on disk: a list for tests and notebooks, and what SGLang's ``capture_output`` gives."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from _thread import RLock

    from dumper.settings import Settings
    from dumper.values.source import Source


@dataclass(frozen=True, eq=False)
class CapturedRecord:
    """One value, copied at the time of the call; tensors stay on their device."""

    name: str
    value: Any
    step: int
    tags: Mapping[str, Any]
    dims: str | None
    stream: str
    """``value`` or ``grad``."""


class Records(Protocol):
    """What takes records."""

    def append(self, record: CapturedRecord, /) -> None: ...


def captured(source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int) -> CapturedRecord:
    """Copy a value; tensors are detached."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        kept: Any = _copy_of(value)
    else:
        kept = copy.deepcopy(value)
    return CapturedRecord(source.name, kept, step, dict(tags), dims, source.stream)


def _copy_of(value: Any) -> Any:
    from dumper.values.readable import as_bytes, readable, undisturbed

    if value.is_nested:
        from dumper.values.nested import nested_parts

        with undisturbed():
            for part in nested_parts(value):
                readable(part.tensor)
        return value.detach().clone()
    with undisturbed():
        plain = readable(value)
        return as_bytes(plain).clone().view(plain.dtype)


class Capture:
    """A ``with`` block whose records go into a list, or whatever takes them as one does."""

    def __init__(
        self, lock: RLock, open_captures: list[Records], changed: Callable[[], None], records: Any = None
    ) -> None:
        """``open_captures``: the lists of all blocks that are entered, the innermost last; ``changed`` is called, under
        ``lock``, when it has become longer or shorter. ``records``: what records go to; None for a new list."""
        self._lock = lock
        self._open_captures = open_captures
        self._changed = changed
        self._records: Any = [] if records is None else records

    def __enter__(self) -> Any:
        with self._lock:
            self._open_captures.append(self._records)
            self._changed()
        return self._records

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            # By identity: two captures may hold the same records.
            self._open_captures[:] = [other for other in self._open_captures if other is not self._records]
            self._changed()


GRADIENT = "grad__"
"""Before the names of gradients, as in SGLang's dumps."""


def _recompute_status() -> str:
    """Whether the value that comes now is computed inside activation checkpointing, and there a second time."""
    from dumper.recording.short_way import checkpoint_is_running

    if not checkpoint_is_running():
        return "disabled"
    backward = getattr(sys.modules.get("torch"), "_C", None)
    return "original" if backward is None or backward._current_graph_task_id() == -1 else "recompute"


class CapturedOutput(dict[str, Any]):
    """``{name: {"value": …, "meta": {…}}}``."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        """``settings``: those in force decide what is kept."""
        super().__init__()
        self._settings = settings

    def append(self, record: CapturedRecord) -> None:
        """Keep a record where recording is on and the filter lets it through."""
        from dumper.rules.expressions import Expression

        settings = self._settings()
        status = _recompute_status() if record.stream == "value" else "disabled"
        known = {**record.tags, "name": record.name, "step": record.step, "recompute_status": status}
        if not settings.enable or (settings.filter and not Expression(settings.filter).holds(known)):
            return
        name = record.name if record.stream == "value" else f"{GRADIENT}{record.name}"
        meta = {**known, "name": name}
        if record.dims is not None:
            meta["dims"] = record.dims
        self[name] = {"value": record.value, "meta": meta}

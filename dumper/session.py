"""What is open while a process records: its place, its status, its writer, and the description of what it records."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dumper.adapters import describe_process
from dumper.adapters.protocol import PendingLayout, Process
from dumper.encoder import RankEncoder
from dumper.filters import Filter
from dumper.format.status import StatusBlock
from dumper.items import BeginStep, Description, InstalledTaps, Place, Submission, TagsKey
from dumper.layout import TokenLayout
from dumper.levels import FULL, HASH, Level, LevelRules
from dumper.measures import device_statistics
from dumper.settings import Settings
from dumper.staging import Described, Stager
from dumper.taps import Tap
from dumper.writer import Writer, current_process, status_path

_MOST_DECISIONS = 100_000
"""Combinations of name and tags whose fate is remembered; tags that count without end must not fill the memory."""


class Session:
    """From the first record to ``close``. ``submit`` may be called from any thread."""

    def __init__(self, settings: Settings, taps: Sequence[Tap]) -> None:
        self._settings = settings
        self._taps = taps
        self.process = describe_process()
        self.status = _open_status(settings, self.process)
        self._stager = Stager(settings.memory_budget // 4)
        self._writer = Writer(settings, self.status, RankEncoder(settings, self._status_of, self._coverage))
        self._writer.put(Place(self.process))
        self._decisions: dict[tuple[str, TagsKey, str | None], Level | None] = {}
        self._descriptions: dict[tuple[Any, ...], Description] = {}
        self._read_rules()

    def reconfigure(self, settings: Settings) -> None:
        """Take over what may change while the file is open: filter and level."""
        self._settings = settings
        self._read_rules()

    def _read_rules(self) -> None:
        settings = self._settings
        self._filter = Filter(settings.filter) if settings.filter else None
        self._rules = LevelRules.parse(settings.level) if settings.level else None
        self._decisions = {}

    def submit(
        self,
        name: str,
        value: Any,
        dims: str | None,
        tags: Mapping[str, Any],
        level: str | None,
        tap: str | None,
        stream: str,
        step: int | None,
    ) -> None:
        """Copy a value and hand it to the writer. Raises UnrecordableError and whatever the copy raises."""
        tags_key = _tags_key(tags)
        chosen = self._decide(name, tags_key, level)
        if chosen is None:
            return
        self.status.add("submitted")
        nbytes = _size(value)
        if not self._writer.reserve(nbytes):
            self.status.add("lost_full_memory")
            return
        try:
            described, staged = self._stage(value, chosen)
        except Exception:
            self._writer.adjust(-nbytes)
            self.status.add("lost_encoding")
            raise
        # What is queued is accounted for by what was staged; a summary is smaller than its value.
        self._writer.adjust(staged.staged.nbytes - nbytes)
        recompute = _recomputing()
        key = (name, tags_key, dims, described.dtype, described.shape, chosen, stream, tap, recompute)
        description = self._descriptions.get(key)
        if description is None:
            if len(self._descriptions) > _MOST_DECISIONS:
                self._descriptions.clear()
            if described.dtype is None:
                key = (*key[:5], FULL, *key[6:])
            description = self._descriptions[key] = Description(*key)
        self._writer.put(Submission(description, staged.staged, step))

    def _decide(self, name: str, tags: TagsKey, level: str | None) -> Level | None:
        """The level of a record; None when the filter rejects it."""
        key = (name, tags, level)
        try:
            return self._decisions[key]
        except KeyError:
            pass
        names = {**dict(tags), "name": name, "rank": self.process.rank}
        decision: Level | None
        if self._filter is not None and not self._filter(names):
            decision = None
        elif level is not None:
            decision = Level.parse(level)
        else:
            decision = self._rules.choose(name, names) if self._rules is not None else FULL
        if len(self._decisions) > _MOST_DECISIONS:
            self._decisions.clear()
        self._decisions[key] = decision
        return decision

    def _stage(self, value: Any, level: Level) -> tuple[Described, Described]:
        """What the value is, and what is kept of it."""
        torch = sys.modules.get("torch")
        if level is FULL or level == HASH or torch is None:
            staged = self._stager.stage(value)
            return staged, staged
        tensor = value if isinstance(value, torch.Tensor) else None
        if tensor is None or (level.kind == "sample" and tensor.dim() == 0):
            staged = self._stager.stage(value)
            return staged, staged
        described = self._stager.describe(tensor)
        kept = device_statistics(tensor) if level.kind == "stats" else tensor.detach()[level.row_slice]
        return described, self._stager.stage(kept)

    def begin_step(self, number: int, layout: TokenLayout | PendingLayout | None, tags: Mapping[str, Any]) -> None:
        """A step begins; ``layout`` may still be on its way."""
        self.status.add("steps")
        self._writer.put(BeginStep(number, layout, dict(_tags_key(tags))))

    def add_taps(self, module: str, taps: tuple[Mapping[str, Any], ...], config: Mapping[str, Any]) -> None:
        """Taps of a patched module, for the run's tap coverage."""
        self._writer.put(InstalledTaps(module, taps, config))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.stop()
        self.status.release()

    def counts(self) -> dict[str, int]:
        """The counts of the status block."""
        return self.status.counts()

    def _status_of(self, process: Process) -> StatusBlock:
        return self.status

    def _coverage(self) -> dict[str, Any]:
        return {
            "fired": {tap.id: tap.fired for tap in list(self._taps)},
            "failed": {tap.id: tap.failures for tap in list(self._taps) if tap.failures},
        }


def _open_status(settings: Settings, process: Process) -> StatusBlock:
    """The status block on disk, or in memory alone where the directory cannot be written (the writer says so)."""
    path = status_path(settings.run_path, process.rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path = status_path(settings.run_path, process.rank, current_process())
        return StatusBlock(path)
    except OSError:
        return StatusBlock(None)


def _tags_key(tags: Mapping[str, Any]) -> TagsKey:
    if not tags:
        return ()
    return tuple([(key, value if type(value) in _PLAIN else _plain(value)) for key, value in tags.items()])


_PLAIN = frozenset({int, str, float, bool, type(None)})


def _plain(value: Any) -> int | float | str | bool | None:
    """A tag as a scalar: numbers of numpy and torch as Python's, everything else as text."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        number = item()
        return number if isinstance(number, int | float | bool) else str(number)
    return str(value)


def _size(value: Any) -> int:
    """Bytes that a copy of the value will take; a guess for plain values and for what cannot be recorded."""
    try:
        nbytes = value.nbytes
    except (AttributeError, RuntimeError, NotImplementedError):
        return 64
    return nbytes if isinstance(nbytes, int) else 64


def _recomputing() -> bool:
    """Whether this is a forward pass inside a backward pass: activations that are computed a second time."""
    torch = sys.modules.get("torch")
    current = getattr(getattr(torch, "_C", None), "_current_graph_task_id", None)
    return current is not None and current() != -1

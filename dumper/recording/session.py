"""What is open while a process records: its place, its status, its writer, and the plans for what it records."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dumper.adapters import describe_process
from dumper.adapters.protocol import PendingLayout, Process
from dumper.format.run_files import status_path
from dumper.format.status import StatusBlock
from dumper.layout import TokenLayout
from dumper.memory.buffers import SMALL
from dumper.memory.staging import Stager, reduce_value
from dumper.recording.plans import MOST_PLANS, Plan, SmallTensors
from dumper.rules.expressions import Expression
from dumper.rules.levels import FULL, STATS, Level, LevelRules
from dumper.settings import Settings
from dumper.values.dtypes import KNOWN
from dumper.values.source import Source
from dumper.writing.items import BeginStep, InstalledTaps, Submission, TagsKey, Watched
from dumper.writing.rank_stream import Coverage, RankStream
from dumper.writing.writer import OVERHEAD_BYTES, Writer

logger = logging.getLogger("tensortap")


class Session:
    """From the first record to ``close``. ``submit`` may be called from any thread."""

    def __init__(self, settings: Settings, coverage: Coverage, stager: Stager) -> None:
        """``coverage`` tells what taps did, for the end."""
        self._settings = settings
        self.process = describe_process()
        self.status = _open_status(settings, self.process)
        self._stager = stager
        encoder = RankStream(settings, self.process, self.status, coverage)
        encoder.claim()
        self._writer = Writer(settings, encoder, stager.host)
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._next_number = itertools.count(1).__next__
        self._plain_tensors: frozenset[type] = frozenset()
        self._strided: Any = None
        self._dtypes: dict[Any, str] = {}
        self._backward_pass: Callable[[], int] = _no_backward_pass
        self._read_rules()

    def reconfigure(self, settings: Settings) -> None:
        """Take over what may change while the file is open: filter and level."""
        self._settings = settings
        self._read_rules()

    def _read_rules(self) -> None:
        settings = self._settings
        self._filter = Expression(settings.filter) if settings.filter else None
        self._rules = LevelRules.parse(settings.level) if settings.level else None
        conditions = [self._filter, *(rule for _, rule in self._rules.rules)] if self._rules else [self._filter]
        self._by_step = any(condition is not None and "step" in condition.names for condition in conditions)
        self._plans = {}

    def submit(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None) -> None:
        """Copy a value and hand it to the writer.

        Raises UnrecordableError and whatever the copy raises; the loss is counted already.
        """
        # The types belong to the key: True, 1 and 1.0 are equal.
        rules_step = step if self._by_step else None
        key = (source, dims, rules_step, *tags.items(), *map(type, tags.values()))
        try:
            plan = self._plans.get(key)
        except TypeError:
            # A tag that cannot be hashed.
            plan = self._make_plan(source, dims, tags, rules_step)
        else:
            if plan is None:
                if len(self._plans) > MOST_PLANS:
                    self._plans.clear()
                plan = self._plans[key] = self._make_plan(source, dims, tags, rules_step)
        if plan.chosen is None:
            return
        self.status.submitted(self._next_number())
        try:
            if not (plan.whole and type(value) in self._plain_tensors and self._submit_small(plan, value, step)):
                self._submit_any(plan, value, step)
        except BaseException:
            self.status.add("lost_encoding")
            raise

    def _submit_small(self, plan: Plan, value: Any, step: int | None) -> bool:
        """The short way, straight from the tensor's memory; False for a tensor that cannot go it."""
        # A sparse tensor has no answer to what is asked after its layout.
        if value.layout is not self._strided or not value.is_cpu or not value.is_contiguous():
            return False
        key = (value.dtype, value.shape, self._backward_pass() != -1)
        small = plan.small.get(key) or plan.remember_small(key, self._describe_small(plan, value))
        if small.description is None or (small.may_be_lazy and (value.is_neg() or value.is_conj())):
            return False
        if not self._writer.put_small(small.description, value.data_ptr(), small.nbytes, step):
            self.status.add("lost_full_memory")
        return True

    def _describe_small(self, plan: Plan, value: Any) -> SmallTensors:
        """What is worked out once for tensors of one type and shape."""
        dtype = self._dtypes.get(value.dtype)
        if dtype is None or value.nbytes > SMALL:
            return SmallTensors(None)
        description = plan.describe(dtype, value.shape, self._backward_pass() != -1)
        return SmallTensors(description, value.nbytes, dtype in _MAY_BE_LAZY)

    def _submit_any(self, plan: Plan, value: Any, step: int | None) -> None:
        """The long way: any value, any device, any level."""
        self._look_up_torch()
        assert plan.chosen is not None
        level = plan.chosen
        if level.kind == "sample" and self._settings.on_nan is not None:
            # What is sampled may not hold the NaN that is waited for.
            watched = reduce_value(value, STATS)
            if watched.shape is not None:
                self._writer.put(Watched(self._stager.stage(watched.kept).data, step))
        if level.kind in ("stats", "sample"):
            reduced = reduce_value(value, level)
            kept, level, dtype, shape = reduced.kept, reduced.level, reduced.dtype, reduced.shape
        else:
            kept, dtype, shape = value, None, None
        reserved = _size(kept) + OVERHEAD_BYTES
        if not self._writer.reserve(reserved):
            self.status.add("lost_full_memory")
            return
        try:
            described = self._stager.stage(kept)
        except BaseException:
            self._writer.give_back(reserved)
            raise
        if described.dtype is None:
            level = FULL
        elif level.kind not in ("stats", "sample"):
            dtype, shape = described.dtype, described.shape
        description = plan.describe(dtype, shape, self._backward_pass() != -1, level)
        submission = Submission(description, described.data, step, reserved)
        if reserved > SMALL:
            self._writer.put_now(submission)
        else:
            self._writer.put(submission)

    def _make_plan(self, source: Source, dims: str | None, tags: Mapping[str, Any], step: int | None) -> Plan:
        scalars = _as_scalars(tags)
        known = (source, dims, step, *scalars, *(type(value) for _, value in scalars))
        plan = self._plans.get(known)
        if plan is None:
            plan = self._plans[known] = Plan(source, scalars, dims, self._choose(source, scalars, step))
        return plan

    def _choose(self, source: Source, tags: TagsKey, step: int | None) -> Level | None:
        """The level of a record; None when the filter rejects it."""
        names = {**dict(tags), "name": source.name, "rank": self.process.rank, "step": step}
        if self._filter is not None and not self._filter.holds(names):
            return None
        if source.level is not None:
            try:
                return Level.parse(source.level)
            except ValueError as error:
                logger.error("tensortap: %s: %s. The rules of the settings are used instead.", source.name, error)
        return self._rules.choose(names) if self._rules is not None else FULL

    def _look_up_torch(self) -> None:
        """Look up what the short way needs, once torch is there."""
        torch = sys.modules.get("torch")
        if torch is None or self._plain_tensors or not hasattr(torch, "Tensor"):
            return
        names = {name: getattr(torch, name, None) for name in KNOWN}
        self._dtypes = {dtype: name for name, dtype in names.items() if dtype is not None}
        self._strided = torch.strided
        self._backward_pass = getattr(torch._C, "_current_graph_task_id", _no_backward_pass)
        self._plain_tensors = frozenset({torch.Tensor, torch.nn.Parameter})

    def begin_step(self, number: int, layout: TokenLayout | PendingLayout | None, tags: Mapping[str, Any]) -> None:
        """A step begins; ``layout`` may still be on its way."""
        self.status.add("steps")
        self._writer.put(BeginStep(number, layout, dict(_as_scalars(tags))))

    def add_taps(self, module: str, taps: tuple[Mapping[str, Any], ...], config: Mapping[str, Any]) -> None:
        """Taps of a patched module, for the run's tap coverage."""
        self._writer.put(InstalledTaps(module, taps, config))

    def flush(self) -> None:
        """Return when all that was submitted is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Complete the file."""
        self._writer.stop()
        self.status.release()

    def counts(self) -> dict[str, int]:
        """The counts of the status block."""
        return self.status.counts()


def _open_status(settings: Settings, process: Process) -> StatusBlock:
    """The status block on disk, or in memory alone where the directory cannot be written (the writer says so)."""
    path = status_path(settings.run_path, process.rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path = status_path(settings.run_path, process.rank, os.getpid())
        return StatusBlock(path)
    except OSError:
        return StatusBlock(None)


_MAY_BE_LAZY = frozenset({"float16", "float32", "float64", "complex32", "complex64", "complex128"})
"""Types whose elements may still have to be conjugated or negated (parts of complex tensors). To ask torch lets go of
the interpreter lock, so that it is not asked in vain."""


def _no_backward_pass() -> int:
    return -1


def _as_scalars(tags: Mapping[str, Any]) -> TagsKey:
    return tuple((str(key), value if type(value) in _PLAIN else _as_scalar(value)) for key, value in tags.items())


_PLAIN = frozenset({int, str, float, bool, type(None)})


def _as_scalar(value: Any) -> int | float | str | bool | None:
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
    """Bytes that a copy of the value will take; a guess for plain values."""
    try:
        nbytes = value.nbytes
    except Exception:
        # Sparse tensors have the name and raise.
        return 64
    return nbytes if isinstance(nbytes, int) else 64

"""What is open while a process records: its status, its writer, and the plans for what it records."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dumper.adapters import describe_process
from dumper.adapters.protocol import GraphFacts, Parallel, PassSize, PendingLayout
from dumper.layout import TokenLayout
from dumper.log_once import log
from dumper.memory.available import check_room
from dumper.memory.buffers import SMALL
from dumper.memory.device_reductions import RESULT_BYTES
from dumper.memory.staging import Stager, reduce_value
from dumper.recording.context import Steps
from dumper.recording.plans import MOST_PLANS, Choice, Moment, Plan
from dumper.recording.rank_place import beside_relatives, make_and_join_run, open_status
from dumper.recording.reductions import ReducedValueWriter
from dumper.recording.short_way import ShortWay, checkpoint_is_running
from dumper.rules.levels import FULL, STATS
from dumper.settings import Settings
from dumper.values.source import Source
from dumper.writing.items import (
    AddedAxes,
    BeginStep,
    InstalledTaps,
    StagedLayout,
    Submission,
    TagsKey,
    Watched,
    as_scalars,
    check_text,
)
from dumper.writing.rank_stream import Coverage, RankStream
from dumper.writing.writer import OVERHEAD_BYTES, Writer

if TYPE_CHECKING:
    from dumper.recording.graphs.captured import CapturedGraph
    from dumper.recording.graphs.replays import Replays
    from dumper.recording.shortcut import Shortcut


class Session:
    """From the first record to ``close``. ``submit`` may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        coverage: Coverage,
        stager: Stager,
        forked_from: tuple[int, ...] = (),
        batch: Any = None,
    ) -> None:
        """``coverage`` tells what taps did, for the end; ``forked_from``: processes that had the recorder before;
        ``batch``: of the step under way, which may tell the model."""
        self.process = describe_process(batch=batch)
        if settings.parallel:
            self.process = replace(self.process, parallel={**self.process.parallel, **settings.parallel})
        self._axes = dict(self.process.parallel)
        self.run_id = make_and_join_run(settings)
        elsewhere = beside_relatives(settings, self.process, self.run_id, forked_from)
        if elsewhere is not settings:
            settings, self.run_id = elsewhere, make_and_join_run(elsewhere)
        self._settings = settings
        self.status = open_status(settings, self.process, self.run_id)
        self._stager = stager
        encoder = RankStream(settings, self.process, self.status, coverage, self.run_id, forked_from)
        # Before the file is claimed, which nobody could write then: there may be no more threads.
        self._writer = Writer(settings, encoder, stager.host)
        encoder.claim()
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._replays: Replays | None = None
        self._next_number = itertools.count(1).__next__
        self._reduced = ReducedValueWriter(self._writer, self.status, watches_for_nan=settings.on_nan is not None)
        self._short_way = ShortWay(self._writer, stager, self.status, self._reduced)
        self._shortcut: Shortcut | None = None
        self._shortcut_knows_device = False
        self._done = False
        self._read_rules()

    def reconfigure(self, settings: Settings) -> None:
        """Take over what may change while the file is open: filter and level."""
        self._settings = settings
        self._read_rules()
        self.add_axes(dict(settings.parallel or {}))

    def _read_rules(self) -> None:
        self._choice = Choice(self._settings, self.process.rank)
        self._asked = self._choice.asked
        self._plans = {}
        self._drop_shortcut()
        if self._replays is not None:
            self._replays.forget()

    def submit(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None) -> None:
        """Copy a value and hand it to the writer.

        Raises UnrecordableError and whatever the copy raises; the loss is counted already.
        """
        # The types belong to the key: True, 1 and 1.0 are equal.
        moment = self._moment(source, step) if self._asked else None
        key: tuple[Any, ...]
        if len(tags) == 1:
            # What most calls have, in a third of the time.
            for tag, tagged in tags.items():
                key = (source, dims, moment, tag, tagged, type(tagged))
        else:
            key = (source, dims, moment, *tags.items(), *map(type, tags.values()))
        try:
            plan = self._plans.get(key)
        except Exception:
            # Something that cannot be hashed.
            plan, key = None, ()
        if plan is None:
            try:
                plan = self._make_plan(source, dims, tags, moment)
            except BaseException:
                self.count_lost("lost_encoding")
                raise
            if key:
                if len(self._plans) > MOST_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        if plan.chosen is None:
            return
        self.status.submitted(self._next_number())
        try:
            if not self._short_way.submit(plan, value, step):
                self._submit_any(plan, value, step)
        except BaseException:
            self.status.add("lost_encoding")
            raise

    def shortcut(self, steps: Steps) -> Shortcut | None:
        """What does the same as ``submit`` for tensors that come as others came before, and returns False for all else;
        None where there is nothing that can."""
        if self._done or self._asked:
            return None
        if self._shortcut is None or self._shortcut_knows_device != self._stager.device_is_known:
            self._drop_shortcut()
            self._shortcut_knows_device = self._stager.device_is_known
            self._shortcut = self._short_way.shortcut(steps, self._plans, self._next_number)
        return self._shortcut

    def offers_shortcut(self, known: Callable[..., bool] | None) -> bool:
        """Whether ``shortcut`` gives another than is known already."""
        if self._done or self._asked:
            return False
        if self._shortcut is None or self._shortcut_knows_device != self._stager.device_is_known:
            return self._short_way.has_shortcut
        return known != self._shortcut.submit

    def _drop_shortcut(self) -> None:
        if self._shortcut is not None:
            self._shortcut.close()
            self._shortcut = None

    def wants(self, source: Source, dims: str | None, tags: Mapping[str, Any], step: int | None) -> bool:
        """Whether the filter lets records like this through. Raises UnrecordableError; the loss is not counted."""
        moment = self._moment(source, step) if self._asked else None
        return self._make_plan(source, dims, tags, moment).chosen is not None

    def _moment(self, source: Source, step: int | None) -> Moment:
        """What the rules ask of the moment of a record; what they do not ask is None, so that it makes no plans."""
        status = None
        if "recompute_status" in self._asked:
            self._short_way.look_up_torch()
            # A gradient belongs to neither: it is there once.
            if source.stream != "value" or not checkpoint_is_running():
                status = "disabled"
            else:
                status = "original" if not self._short_way.is_backward() else "recompute"
        return Moment(step if "step" in self._asked else None, status)

    def _submit_any(self, plan: Plan, value: Any, step: int | None) -> None:
        """The long way: any value, any device, any level."""
        self._short_way.look_up_torch()
        assert plan.chosen is not None
        level = plan.chosen
        if _is_nested(value):
            self._submit_nested(plan, value, step)
            return
        if level.kind in RESULT_BYTES and self._short_way.submit_reduced(plan, value, step):
            return
        if level.kind == "sample" and self._settings.on_nan is not None:
            self._watch(value, step)
        if level.kind in ("stats", "sample"):
            reduced = reduce_value(value, level)
            kept, level, dtype, shape = reduced.kept, reduced.level, reduced.dtype, reduced.shape
        else:
            kept, dtype, shape = value, None, None
        reserved = _size(kept) + OVERHEAD_BYTES
        if reserved > self._settings.memory_budget:
            check_room(reserved)
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
        description = plan.describe(dtype, shape, self._short_way.is_recomputed(plan), level)
        submission = Submission(description, described.data, step, reserved)
        if reserved > SMALL:
            self._writer.put_now(submission)
        else:
            self._writer.put(submission)

    def _watch(self, value: Any, step: int | None) -> None:
        """Have the writer look at all of a value that is sampled, which may not hold the NaN that is waited for."""
        watched = reduce_value(value, STATS)
        if watched.shape is not None and watched.level is STATS:
            self._writer.put(Watched(self._stager.stage(watched.kept).data, step))

    def _submit_nested(self, plan: Plan, value: Any, step: int | None) -> None:
        """A nested tensor as ordinary ones, ``name.values`` and where each part begins; the filter has let it through.

        The last part takes the place of the whole in the counts.
        """
        from dumper.values.nested import dims_of_values, nested_parts
        from dumper.values.readable import undisturbed

        with undisturbed():
            parts = nested_parts(value)
        *others, last = (
            (plan.part(part.name, dims_of_values(plan.dims) if part.has_dims else None), part.tensor) for part in parts
        )
        for part_plan, tensor in others:
            self.submit_planned(part_plan, tensor, step)
        self._submit_any(last[0], last[1], step)

    def submit_planned(self, plan: Plan, value: Any, step: int | None) -> None:
        """Record a value that a plan has been made for. Raises what the copy raises; the loss is counted already."""
        self.status.submitted(self._next_number())
        try:
            self._submit_any(plan, value, step)
        except BaseException:
            self.status.add("lost_encoding")
            raise

    def submit_replay(
        self, graph: CapturedGraph, added: Mapping[str, Any], step: int | None, size: PassSize | None
    ) -> int:
        """Record what a replay of a CUDA graph has left, on the current stream; ``added`` are tags of the thread.
        Returns how many values that were.

        Raises what a copy raises; what is lost is counted already.
        """
        if self._replays is None:
            from dumper.recording.graphs.handover import Handover
            from dumper.recording.graphs.replays import Replays

            handover = Handover(self._writer, self._stager, self.status, self._next_number, self._reduced)
            self._replays = Replays(self, handover)
        return self._replays.submit(graph, added, step, step if "step" in self._asked else None, size)

    def plan_in_graph(
        self, source: Source, dims: str | None, tags: Mapping[str, Any], step: int | None, facts: GraphFacts | None
    ) -> Plan:
        """What to do with a value that replays of a graph leave. Raises UnrecordableError."""
        known = {} if facts is None else facts.fields()
        scalars = self._checked(source, dims, tags)
        names = {f"graph_{name}": value for name, value in known.items()}
        moment = self._moment(source, step) if self._asked else None
        wanted = self._settings.enable_value or source.stream != "value"
        return Plan(
            source, scalars, dims, self._choice.level(source, scalars, moment, names) if wanted else None, known
        )

    @property
    def watches_samples(self) -> bool:
        """Whether values of which a sample is kept have to be looked at as a whole."""
        return self._settings.on_nan is not None

    def count_lost(self, reason: str) -> None:
        """Count a value that is not recorded and was not handed to the writer."""
        self.status.submitted(self._next_number())
        self.status.add(reason)

    def _make_plan(self, source: Source, dims: str | None, tags: Mapping[str, Any], moment: Moment | None) -> Plan:
        """Raises UnrecordableError for names, dims and tags that a file cannot hold."""
        scalars = self._checked(source, dims, tags)
        known = (source, dims, moment, *scalars, *(type(value) for _, value in scalars))
        plan = self._plans.get(known)
        if plan is None:
            plan = self._plans[known] = Plan(source, scalars, dims, self._choice.level(source, scalars, moment))
        return plan

    def _checked(self, source: Source, dims: str | None, tags: Mapping[str, Any]) -> TagsKey:
        """The tags as scalars. Raises UnrecordableError for names, dims and tags that a file cannot hold."""
        scalars = as_scalars(tags)
        check_text("name", source.name)
        if dims is not None:
            check_text("dims", dims)
        return scalars

    def begin_step(
        self, number: int, layout: TokenLayout | PendingLayout | None, tags: Mapping[str, Any], updates: int = 0
    ) -> None:
        """A step begins; ``layout`` may still be on its way. ``updates``: of the weights, before it."""
        self.status.add("steps")
        self._writer.put(BeginStep(number, self._staged_layout(layout), dict(as_scalars(tags)), updates))

    def _staged_layout(self, layout: TokenLayout | PendingLayout | None) -> TokenLayout | StagedLayout | None:
        """The values that a layout needs, on their way like those that are recorded."""
        if not isinstance(layout, PendingLayout):
            return layout
        try:
            return StagedLayout(
                {name: self._stager.stage(value) for name, value in layout.tensors.items()}, layout.build
            )
        except Exception as error:
            log().warning("tensortap: a step has no token layout: %s", error)
            return None

    def add_axes(self, axes: Parallel) -> None:
        """Axes of the parallel layout that were not known when the file was begun."""
        added = {axis: place for axis, place in axes.items() if axis not in self._axes}
        if added:
            self._axes.update(added)
            self._writer.put(AddedAxes(added))

    def add_taps(self, module: str, taps: tuple[Mapping[str, Any], ...], config: Mapping[str, Any]) -> None:
        """Taps of a patched module, for the run's tap coverage."""
        self._writer.put(InstalledTaps(module, taps, config))

    def flush(self) -> None:
        """Return when all that was submitted is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Complete the file."""
        self._done = True
        self._drop_shortcut()
        self._writer.stop()
        self.status.release()

    def end(self) -> None:
        """Complete the file at the end of the process; what comes afterwards is counted as lost."""
        self._done = True
        self._drop_shortcut()
        setattr(self, "submit", self._count_late)  # noqa: B010
        setattr(self, "submit_replay", self._count_late_replay)  # noqa: B010
        setattr(self, "begin_step", self._ignore_step)  # noqa: B010
        self._writer.stop()

    def _count_late(self, *value: object) -> None:
        self.count_lost("lost_ended")

    def _count_late_replay(self, graph: CapturedGraph, *more: object) -> int:
        for _ in graph.taps:
            self.count_lost("lost_ended")
        return 0

    def _ignore_step(self, *step: object) -> None:
        """A step without values needs no counting."""

    def counts(self) -> dict[str, int]:
        """The counts of the status block."""
        return self.status.counts()


def _is_nested(value: Any) -> bool:
    """Whether a value is a nested tensor of torch, jagged or strided."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    if type(value) is not torch.Tensor:
        from dumper.values.readable import undisturbed

        with undisturbed():
            return bool(value.is_nested)
    return bool(value.is_nested)


def _size(value: Any) -> int:
    """Bytes that a copy of the value will take; a guess for plain values."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            from dumper.values.readable import undisturbed

            with undisturbed():
                return int(value.numel() * value.element_size())
        nbytes = value.nbytes
    except Exception:
        # Sparse tensors have the name and raise.
        return 64
    return nbytes if isinstance(nbytes, int) else 64

"""Make a comparison ready: index both runs, match their bundles, and hold what measuring every pair needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from comparator.arguments import check_options
from comparator.engine.protocol import Measure
from comparator.errors import ComparatorError
from comparator.match.bundles import BundlePair, Key, RunIndex
from comparator.match.indexing import choose_rules, index, parallel_layout
from comparator.match.keys import named_file
from comparator.match.pairs import match_bundles
from comparator.measure.measurement import Measurement
from comparator.measure.measurer import Measurer
from comparator.measure.of_ranks import factor_of_gradients
from comparator.measure.units import (
    Families,
    MakeProfile,
    P,
    Unit,
    UnitResult,
    measure_unit,
    members_of_families,
    units_of,
)
from comparator.options import Options, Side
from comparator.patterns import fullmatch, search
from comparator.plan.context import SideContext
from comparator.plan.planner import Planner
from comparator.plan.selection import Selected, Selector
from comparator.plan.tokens import build_token_aligner
from comparator.plan.tokens.interface import SideLayouts, TokenAligner
from comparator.report.runs import notes_of_run
from comparator.report.traced_plan import traced_plan
from comparator.rules import Rules, joins_steps
from comparator.verdict.judge import Said, Verdict, judge_pair, say
from dumper.reading.protocol import Record, Run
from tensortap.progress import Progress, silent

if TYPE_CHECKING:
    from comparator.diagnosis import Calibration
    from comparator.verdict.profiles import FamilyProfile
    from comparator.verdict.taps import Taps

MOST_SELECTED = 1 << 14
"""Pairs of which it is remembered what is compared, until they are judged."""


class OtherRuns(Struct, frozen=True):
    """Runs beside the pair that help to judge it."""

    reference: Run | None = None
    """The same model in higher precision."""
    noise: tuple[Run, ...] = ()
    """Repeats and benign variants of the baseline: what they differ by is no fault."""
    calibration: Calibration | None = None
    """Floors that were measured earlier."""


class Prepared(Struct, frozen=True, dict=True):
    """A comparison that is planned as far as the index goes."""

    baseline: Run
    target: Run
    options: Options
    rules: Rules
    pairs: Sequence[BundlePair]
    contexts: Mapping[Side, SideContext]
    planner: Planner
    others: OtherRuns
    unused: Sequence[Said] = ()
    """Rules of the map and patterns that match nothing, and what else is to be said of the comparison."""
    factor: float = 1
    """By which gradients of values of the target are divided."""
    processes: int = 1
    """That share the memory which comparing may take."""

    @cached_property
    def measurer(self) -> Measurer:
        memory = self.options.memory
        return Measurer(
            self.planner,
            self.options if memory is None else replace(self.options, memory=memory // self.processes),
            factor=self.factor,
        )

    @cached_property
    def units(self) -> Sequence[Unit]:
        """The units of work, in the order of execution of their first pairs."""
        return units_of(self.pairs, self.members, self.rules)

    @cached_property
    def members(self) -> Mapping[Key, Sequence[int]]:
        """The pairs of each family, by their numbers."""
        return members_of_families(self.pairs)

    @cached_property
    def families(self) -> Families:
        """Aligned rows of whole families, for what is measured against other families."""
        return Families(self.pairs, self.members, self.select, self.measurer)

    @cached_property
    def _selector(self) -> Selector:
        return Selector.of(self.contexts, self.options, self.rules)

    @cached_property
    def _selected(self) -> dict[int, list[Selected]]:
        """Of pairs that are measured and then judged: the first ones, which are judged first, and the last one."""
        return {}

    def select(self, number: int) -> list[Selected]:
        """What of a pair is compared; several where it is compared step by step."""
        found = self._selected.get(number)
        if found is None:
            found = self._selector.select(self.pairs[number])
            if len(self._selected) >= MOST_SELECTED:
                self._selected.popitem()
            self._selected[number] = found
        return found

    def select_to_judge(self, number: int) -> list[Selected]:
        """As ``select``, of a pair that nobody asks for after that."""
        found = self.select(number)
        del self._selected[number]
        return found

    def measure(self, unit: Unit, profiler: MakeProfile[P] | None = None, threads: int = 1) -> UnitResult[P]:
        """Measure one unit: numbers in, numbers out. Raises ComparatorError for what concerns more than a pair."""
        measurer = self.measurer if threads == 1 else replace(self.measurer, threads=threads)
        return measure_unit(unit, self.select, measurer, self.families, profiler)

    def judge(self, measurement: Measurement, selected: Selected) -> Verdict:
        """The verdict on one row of the table, by rules that look at no other row."""
        return judge_pair(measurement, selected.pair.name, selected.left_out, self.options, selected.rules)

    def trace(self, selected: Selected) -> dict[str, Any] | None:
        """How a pair of SGLang's dumps was put together, for its report."""
        if self.rules.grouping != "file_names" or not self.options.samples:
            return None
        plan = self.planner.plan(selected.pair, selected.rules)
        return traced_plan(selected.pair, plan, self.options.token_aligner)

    def profiles(self, taps: Taps) -> dict[Key, FamilyProfile]:
        """The profiles of all families, without the findings of their pairs."""
        from comparator.verdict.profiles import Profiler  # as below: two of SGLang's dumps have no diagnosis

        profiler = Profiler(taps)
        found = {}
        for family in self.families.keys:
            rows = self.families.rows(family)
            profile = None if rows is None else profiler(rows, self.families)
            if profile is not None and len(rows or ()):
                found[family] = profile
        return found

    def against(self, other: Run, side: Side, what: str) -> dict[Key, FamilyProfile]:
        """Profiles of a run beside the pair: of ``other`` against one side, with the other run as the baseline.

        Raises ComparatorError where they have nothing in common that the analysis can judge.
        """
        from comparator.verdict.taps import collect_taps

        run = self.baseline if side == "baseline" else self.target
        prepared = prepare(other, run, self.options)
        planner = prepared.planner
        taps = replace(
            collect_taps(prepared.pairs, other, run, planner.parted, self.options), encoded=planner.encoded()
        )
        found = prepared.profiles(taps)
        if not found:
            raise ComparatorError(
                f"the {what} {other.path} has no tap with tokens in common with the {side} {run.path}; it must be a "
                "run of the same model with the same prompts and taps (--token-aligner smart joins other batches)"
            )
        return found

    @cached_property
    def taps(self) -> Taps:
        """What is known of the taps, for their profiles."""
        from comparator.verdict.taps import collect_taps

        found = collect_taps(self.pairs, self.baseline, self.target, self.planner.parted, self.options)
        return replace(found, encoded=self.planner.encoded())

    def profiling(self, threads: int = 1) -> Measure[FamilyProfile]:
        """What measures a unit, and makes the profile of its family where verdicts look at the whole table; a large
        pair in so many ``threads``."""
        if not self.rules.whole_table:
            return lambda unit: self.measure(unit, None, threads)
        from comparator.verdict.profiles import Profiler

        profiler = Profiler(self.taps)
        return lambda unit: self.measure(unit, profiler, threads)

    def expect(self, units: Sequence[Unit]) -> None:
        """Let what of these units lies on object storage be read ahead, in the order in which it will be measured."""
        self.baseline.expect(self._records(units, "baseline"))
        if self.target is not self.baseline:
            self.target.expect(self._records(units, "target"))

    def _records(self, units: Sequence[Unit], side: Side) -> Iterator[Record]:
        for unit in units:
            for number in unit.pairs:
                pair = self.pairs[number]
                bundle = pair.baseline if side == "baseline" else pair.target
                yield from (entry.record for entry in (bundle.entries if bundle is not None else ()))

    def notes(self) -> dict[Side, list[Said]]:
        """What is wrong with each run as a whole."""
        return {
            "baseline": notes_of_run(self.baseline, self.options, self.rules),
            "target": notes_of_run(self.target, self.options, self.rules),
        }


def prepare(
    baseline: Run,
    target: Run,
    options: Options,
    aligner: TokenAligner | None = None,
    others: OtherRuns | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Match the bundles of two runs and make ready what every pair needs.

    ``progress`` shows how much of the indexes is read. Raises ComparatorError for options, or a map, that cannot be
    read.
    """
    check_options(options)
    if options.strict_taps:
        options = replace(options, error=options.error | {"tap-never-fired"})
    rules, options = choose_rules(baseline, target, options)
    indexes: dict[Side, RunIndex] = {
        "baseline": index(baseline, rules, progress),
        "target": index(target, rules, progress),
    }
    unused: list[Said] = []
    if options.map_config is not None:
        from comparator.match.map import apply_map

        for side, found in list(indexes.items()):
            indexes[side], idle = apply_map(found, options.map_config, side, parallel_layout(found.run))
            unused.extend(say("map-rule-unused", f"{rule} matches no record of the {side}", options) for rule in idle)
    unused.extend(say("pattern-unused", message, options) for message in unused_patterns(indexes.values(), options))
    contexts: dict[Side, SideContext] = {
        side: SideContext.of(
            side,
            found,
            by_rank="rank" not in options.grouping_skip_keys,
            sequence_lengths=_sequence_lengths(found, side, options, rules),
            other=indexes["target" if side == "baseline" else "baseline"],
        )
        for side, found in indexes.items()
    }
    if aligner is None:
        mode = options.token_aligner if joins_steps(options, rules) else "per_step"
        aligner = build_token_aligner(mode, _layouts(baseline, options), _layouts(target, options))
    pairs = match_bundles(indexes["baseline"], indexes["target"], options, rules)
    planner = Planner(contexts, aligner, options, rules)
    factor, remark = factor_of_gradients(pairs, planner, options, rules)
    said = unused if remark is None else [*unused, say(remark.name, remark.message, options)]
    return Prepared(
        baseline, target, options, rules, pairs, contexts, planner, others or OtherRuns(), said, factor=factor
    )


def _layouts(run: Run, options: Options) -> SideLayouts:
    steps = tuple(step for step in run.steps if options.start_step <= step <= options.end_step)
    return SideLayouts(run, parallel_layout(run), steps)


def _sequence_lengths(found: RunIndex, side: Side, options: Options, rules: Rules) -> Mapping[int, Sequence[int]]:
    """Rows per sequence in each step, from ``seq_lens`` or ``cu_seqlens_q``, for packed tokens that are split."""
    if rules.joining != "rows" or options.token_aligner == "per_step":
        return {}
    lengths: dict[int, list[int]] = {}
    for entry in found.entries:
        record, file = entry.record, named_file(entry)
        if file.dumped_name not in ("seq_lens", "cu_seqlens_q") or file.step in lengths or record.error is not None:
            continue
        if side == "target" and not options.start_step <= file.step <= options.end_step:
            continue
        if record.kind == "tensor" and record.shape is not None and len(record.shape) == 1:
            values = record.array()
            each = np.diff(values) if file.dumped_name == "cu_seqlens_q" else values
            if len(each):
                lengths[file.step] = [int(length) for length in each]
    return lengths


def unused_patterns(indexes: Iterable[RunIndex], options: Options) -> list[str]:
    """Sentences on the patterns of ``options`` that match no name of either run: most likely a slip of the pen."""
    names = {kind.name for index in indexes for kind in index.entries.kinds}
    found = [
        f"--override-dims {override.match!r} is found in no recorded name"
        for override in options.overrides
        if not any(search(override.match, name) for name in names)
    ]
    for flag, pattern in (
        *(("--diff-threshold", rule.pattern) for rule in options.diff_threshold[:-1]),
        ("--allow-failed-pattern", options.allow_failed_pattern),
        ("--allow-skipped-pattern", options.allow_skipped_pattern),
    ):
        if pattern is not None and not any(fullmatch(pattern, name) for name in names):
            found.append(f"{flag} {pattern!r} matches no recorded name as a whole")
    return found

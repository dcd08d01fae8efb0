"""Run a comparison: index, match, plan, align, measure, one table of measurements, verdicts, findings.

Memory holds the tensors of one unit of work at a time, and the table, which holds numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from comparator.arguments import check_options
from comparator.match.bundles import BundlePair, RunIndex
from comparator.match.keys import sglang_record
from comparator.match.pairs import match_bundles
from comparator.match.runs import choose_rules, index, parallel_layout
from comparator.measure.measurement import TensorMeasurement
from comparator.measure.pair import Measurer
from comparator.measure.units import Families, Profiler, Row, Unit, UnitResult, in_order, measure_unit, units_of
from comparator.options import Options, Side
from comparator.plan.context import SideContext
from comparator.plan.pair import Planner
from comparator.plan.selection import Selected, select
from comparator.plan.tokens import build_token_aligner
from comparator.plan.tokens.interface import SideLayouts, TokenAligner
from comparator.report.findings import build
from comparator.report.records import Comparison
from comparator.report.runs import notes_of_run
from comparator.rules import Rules, joins_steps
from comparator.verdict.judge import Said, Verdict, judge_pair
from dumper.reading.protocol import Run

Progress = Callable[[int], None]
"""Called with the number of pairs that were measured since the last call."""


@dataclass(frozen=True)
class Prepared:
    """A comparison that is planned as far as the index goes."""

    baseline: Run
    target: Run
    options: Options
    rules: Rules
    pairs: Sequence[BundlePair]
    contexts: Mapping[Side, SideContext]
    planner: Planner

    @cached_property
    def measurer(self) -> Measurer:
        return Measurer(self.planner, self.options)

    @cached_property
    def units(self) -> Sequence[Unit]:
        """The units of work, in the order of execution of their first pairs."""
        return units_of(self.pairs, self.rules)

    @cached_property
    def families(self) -> Families:
        """Aligned rows of whole families, for what is measured against other families."""
        return Families(self.pairs, self.select, self.measurer)

    def select(self, number: int) -> list[Selected]:
        """What of a pair is compared; several where it is compared step by step."""
        pair = self.pairs[number]
        return select(pair, self.contexts, self.options, self.rules)

    def measure(self, unit: Unit, profiler: Profiler[object] | None = None) -> UnitResult[object]:
        """Measure one unit: numbers in, numbers out. Raises ComparatorError for what concerns more than a pair."""
        return measure_unit(unit, self.select, self.measurer, self.families, profiler)

    def judge(self, row: Row, selected: Selected) -> Verdict:
        """The verdict on one row of the table, by rules that look at no other row."""
        return judge_pair(row.measurement, selected.pair.name, selected.left_out, self.options, selected.rules)

    def findings(self, progress: Progress = lambda _: None) -> Iterator[Comparison]:
        """The findings in the order of execution. Where verdicts may look at other pairs, they come when everything is
        measured; else as it goes."""
        details = _Details(self)
        if not self.rules.whole_table:
            for unit in self.units:
                result = self.measure(unit)
                progress(len(unit.pairs))
                yield from details.findings(result.rows)
            return
        results = []
        for unit in self.units:
            results.append(self.measure(unit))
            progress(len(unit.pairs))
        yield from details.findings(in_order(results))

    def notes(self) -> dict[Side, list[Said]]:
        """What is wrong with each run as a whole."""
        return {
            "baseline": notes_of_run(self.baseline, self.options),
            "target": notes_of_run(self.target, self.options),
        }


class _Details:
    """Judges rows and makes their findings; measures the first failures again, for how their differences are
    distributed."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._left = prepared.options.detail_limit
        self._selected: tuple[int, list[Selected]] = (-1, [])

    def findings(self, rows: Iterator[Row] | Sequence[Row]) -> Iterator[Comparison]:
        for row in rows:
            selected = self._of(row)
            verdict = self._prepared.judge(row, selected)
            measurement = row.measurement
            if verdict.wants_detail and self._left != 0 and isinstance(measurement, TensorMeasurement):
                self._left -= 1
                measurement = self._prepared.measurer.measure(selected, detailed=True)
            yield build(selected, measurement, verdict, self._prepared.contexts)

    def _of(self, row: Row) -> Selected:
        if self._selected[0] != row.pair:
            self._selected = row.pair, self._prepared.select(row.pair)
        return self._selected[1][row.part]


def prepare(baseline: Run, target: Run, options: Options, aligner: TokenAligner | None = None) -> Prepared:
    """Match the bundles of two runs and make ready what every pair needs.

    Raises ComparatorError for options, or a map, that cannot be read.
    """
    check_options(options)
    if options.strict_taps:
        options = replace(options, error=options.error | {"tap-never-fired"})
    rules, options = choose_rules(baseline, target, options)
    indexes: dict[Side, RunIndex] = {"baseline": index(baseline, rules), "target": index(target, rules)}
    if options.map_config is not None:
        from comparator.match.map import apply_map

        for side, found in list(indexes.items()):
            indexes[side] = apply_map(found, options.map_config, side)
    contexts: dict[Side, SideContext] = {
        side: SideContext.of(
            side,
            found,
            by_rank="rank" not in options.grouping_skip_keys,
            sequence_lengths=_sequence_lengths(found, side, options, rules),
        )
        for side, found in indexes.items()
    }
    if aligner is None:
        mode = options.token_aligner if joins_steps(options, rules) else "per_step"
        aligner = build_token_aligner(mode, _layouts(baseline, options), _layouts(target, options))
    pairs = match_bundles(indexes["baseline"], indexes["target"], options, rules)
    return Prepared(baseline, target, options, rules, pairs, contexts, Planner(contexts, aligner, options, rules))


def _layouts(run: Run, options: Options) -> SideLayouts:
    steps = tuple(step for step in run.steps if options.start_step <= step <= options.end_step)
    return SideLayouts(run, parallel_layout(run), steps)


def _sequence_lengths(found: RunIndex, side: Side, options: Options, rules: Rules) -> Mapping[int, Sequence[int]]:
    """Rows per sequence in each step, from ``seq_lens`` or ``cu_seqlens_q``, for packed tokens that are split."""
    if rules.joining != "rows" or options.token_aligner == "per_step":
        return {}
    lengths: dict[int, list[int]] = {}
    for entry in found.entries:
        record = sglang_record(entry)
        if record.dumped_name not in ("seq_lens", "cu_seqlens_q") or record.step in lengths or record.error is not None:
            continue
        if side == "target" and not options.start_step <= record.step <= options.end_step:
            continue
        if record.kind == "tensor" and record.shape is not None and len(record.shape) == 1:
            values = record.array()
            each = np.diff(values) if record.dumped_name == "cu_seqlens_q" else values
            if len(each):
                lengths[record.step] = [int(length) for length in each]
    return lengths

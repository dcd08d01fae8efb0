"""Run a comparison: index, match, plan, align, measure, one table of measurements, verdicts, findings.

Memory holds the tensors of one unit of work at a time, and the table, which holds numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from comparator.align.aligned import Aligned
from comparator.engine.choice import engine_for, processes_of, threads_of
from comparator.engine.protocol import Engine, InThisProcess
from comparator.errors import ComparatorError
from comparator.match.bundles import Key
from comparator.measure.kernel.sums import RowTable
from comparator.measure.measurement import TensorMeasurement
from comparator.measure.units import PackedRow, Row, Table
from comparator.options import SIDES
from comparator.plan.selection import Selected
from comparator.prepared import Prepared
from comparator.report.findings import build
from comparator.report.records import Comparison
from comparator.verdict.accounts import Accounts
from tensortap.progress import Progress, silent

if TYPE_CHECKING:
    from comparator.diagnosis import Calibration, Diagnosis, ReferenceDiagnosis, TapKey
    from comparator.measure.picture import Draws, Picture
    from comparator.verdict.analysis import Analysis
    from comparator.verdict.profiles import FamilyProfile
    from comparator.verdict.taps import Taps

MOST_NOISE = 5.0
"""Strength of the strongest test from which a noise run is none."""


def begin(
    prepared: Prepared,
    progress: Progress = silent,
    *,
    draws: Draws = "nothing",
    jobs: int | None = 1,
    engine: Engine | None = None,
) -> Comparing:
    """The comparison under way: iterate over it for the findings. ``draws`` says which of them have pictures.

    ``jobs``: processes, which are copies of this one, or threads; None: as many as help. ``engine`` measures in their
    place.
    """
    threads = 1
    if engine is None:
        engine = _engine(prepared, jobs)
        threads = threads_of(engine, prepared.units, jobs)
    processes = processes_of(engine, prepared.units)
    # What was found of the pairs so far is found again, which is little beside comparing in little memory.
    if prepared.options.memory is not None and processes > 1:
        prepared = replace(prepared, processes=processes)
    return Comparing(prepared, progress, draws=draws, engine=engine, threads=threads)


def _engine(prepared: Prepared, jobs: int | None) -> Engine:
    # What reads from object storage has threads, which a copy of the process does not.
    if not (prepared.baseline.is_stored or prepared.target.is_stored):
        return engine_for(jobs, prepared.pairs, prepared.units, prepared.options.memory)
    prepared.expect(prepared.units)
    return InThisProcess()


class Comparing:
    """A comparison under way. Iterating over it gives the findings in the order of execution.

    They come once everything is measured where verdicts may look at other pairs, else as it goes.
    """

    def __init__(
        self, prepared: Prepared, progress: Progress, *, draws: Draws, engine: Engine, threads: int = 1
    ) -> None:
        self._prepared = prepared
        self._engine = engine
        self._threads = threads
        self._progress = progress
        self._details_left = prepared.options.detail_limit
        self._selected: tuple[int, list[Selected]] = (-1, [])
        self._draws = draws
        self.picture: Picture | None = None
        """Of the finding that came last, where pictures were asked for and it has one."""
        self._analysis: Analysis | None = None
        self.measured = False
        """Whether all measuring is done; what remains is to judge and report."""
        self.interrupted = False
        """Whether measuring was ended by an interrupt; what was measured until then is judged and reported."""
        self.accounts = Accounts(prepared.options)
        """What became of every row; complete once the comparison is."""

    @property
    def analysis(self) -> Analysis | None:
        """What the diagnosis says of every tap, with the numbers of its rows; None as ``diagnosis`` is."""
        return self._analysis

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Whether the runs agree, and where error was introduced.

        None until everything is measured, and under rules that look at single pairs only.
        """
        return None if self._analysis is None else self._analysis.diagnosis

    @property
    def reference(self) -> ReferenceDiagnosis | None:
        """What the reference says of both sides; None without one, and until everything is measured."""
        return None if self._analysis is None else self._analysis.reference

    @property
    def tap_ids(self) -> dict[TapKey, str]:
        """The ids of the taps that the diagnosis speaks of."""
        from comparator.verdict.taps import tap_key  # as below: two of SGLang's dumps have no diagnosis

        found = {}
        for family, numbers in self._prepared.members.items():
            tap = next((tap for number in numbers if (tap := self._prepared.pairs[number].tap) is not None), None)
            if tap is not None:
                found[tap_key(family)] = tap
        return found

    def __iter__(self) -> Iterator[Comparison]:
        prepared = self._prepared
        table = Table()
        profiles: dict[Key, FamilyProfile] = {}
        with self._progress("comparing", len(prepared.pairs)) as advance, self._until_interrupted(table):
            for result in self._engine.results(prepared.units, prepared.profiling(self._threads)):
                advance(len(result.unit.pairs))
                if prepared.rules.whole_table:
                    table.extend(result.rows)
                    if result.profile is not None:
                        profiles[prepared.pairs[result.unit.pairs[0]].family] = result.profile
                else:
                    yield from map(self._finding, result.rows)
        if not prepared.rules.whole_table:
            return
        self._analysis = self._analyse(profiles, prepared.taps)
        self.measured = True
        with self._progress("reporting", len(table)) as advance:
            for row in table:
                yield self._finding(row)
                advance(1)

    @contextlib.contextmanager
    def _until_interrupted(self, table: Table) -> Iterator[None]:
        """Go on with what was measured when somebody ends the measuring (Ctrl-C)."""
        try:
            yield
        except KeyboardInterrupt:
            if not len(table):
                raise
            self.interrupted = True

    def _analyse(self, profiles: Mapping[Key, FamilyProfile], taps: Taps) -> Analysis:
        from comparator.verdict.analysis import analyse, with_reference

        prepared, others = self._prepared, self._prepared.others
        calibration = measure_noise(prepared) if others.noise else others.calibration
        analysis = analyse(profiles, taps, prepared.options, calibration)
        if others.reference is None:
            return analysis
        left, right = (prepared.against(others.reference, side, "reference") for side in SIDES)
        return with_reference(analysis, left, right, prepared.options, calibration)

    def _finding(self, row: Row | PackedRow) -> Comparison:
        """Judge a row and make its finding; the first failures are measured again, for how their differences are
        distributed."""
        selected = self._of(row)
        measurement = row.measurement
        verdict = self._prepared.judge(measurement, selected)
        self.accounts.add(selected, measurement)
        if self._analysis is not None:
            bitwise = self._prepared.options.bitwise
            verdict = self._analysis.with_verdict(selected.pair, verdict, measurement, bitwise=bitwise)
        self.picture = None
        if verdict.wants_detail and self._details_left != 0 and isinstance(measurement, TensorMeasurement):
            self._details_left -= 1
            measurement = self._prepared.measurer.measure(
                selected, detailed=True, see=None if self._draws == "nothing" else self._draw
            )
        elif self._draws == "all" and isinstance(measurement, TensorMeasurement):
            self._prepared.measurer.align(selected, self._draw)
        prepared = self._prepared
        found = build(
            selected, measurement, verdict, prepared.contexts, prepared.trace, records=prepared.options.records
        )
        selected.pair.forget()
        return found

    def _draw(self, _: Selected, aligned: Aligned, rows: RowTable | None) -> None:
        from comparator.measure.picture import picture

        self.picture = picture(aligned)

    def _of(self, row: Row | PackedRow) -> Selected:
        if self._selected[0] != row.pair:
            self._selected = row.pair, self._prepared.select_to_judge(row.pair)
        return self._selected[1][row.part]


def measure_noise(prepared: Prepared) -> Calibration:
    """Floors from the baseline's repeats and benign variants, and from earlier calibration.

    Raises ComparatorError for a run that differs by far more than noise.
    """
    from comparator.diagnosis import Calibration, calibrate
    from comparator.verdict.analysis import analyse
    from comparator.verdict.taps import collect_taps

    others = prepared.others
    taps = collect_taps(prepared.pairs, prepared.baseline, prepared.baseline, options=prepared.options)
    diagnoses = []
    for run in others.noise:
        profiles = prepared.against(run, "baseline", "noise run")
        found = analyse(profiles, taps, prepared.options, others.calibration).diagnosis
        if found.nearest >= MOST_NOISE and found.place is not None:
            raise ComparatorError(
                f"the noise run {run.path} differs from the baseline at {found.place.label} by {found.nearest:.0f} "
                "times what rounding explains: that is another model, or a fault of its own, and no noise"
            )
        diagnoses.append(found)
    measured = calibrate(diagnoses)
    earlier = others.calibration.floors if others.calibration is not None else {}
    floors = {
        name: max(earlier.get(name, 0.0), measured.floors.get(name, 0.0)) for name in {*earlier, *measured.floors}
    }
    return Calibration(floors)

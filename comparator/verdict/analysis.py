"""The verdict that looks at all pairs at once: which of them fail because of what the diagnosis found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis import (
    Calibration,
    Diagnosis,
    Judgement,
    ReferenceDiagnosis,
    TapKey,
    diagnose,
    diagnose_reference,
)
from comparator.diagnosis import Options as AnalysisOptions
from comparator.diagnosis.floors import Quantisation
from comparator.match.bundles import BundlePair, Key
from comparator.measure.measurement import Measurement, TensorMeasurement
from comparator.options import Options
from comparator.verdict.criteria import DEFAULT_PREDICATE, find_rule
from comparator.verdict.judge import Judgement as Criterion
from comparator.verdict.judge import Verdict, judge
from comparator.verdict.profiles import FamilyProfile
from comparator.verdict.taps import Taps
from comparator.verdict.training import is_behind_update, limit

ROW_FLOORS = 2.5
"""A row whose error is so many floors fails its pair, where its tap introduces or inherits a fault."""
CRITERION = "introduced error within rounding"


class PairAnalysis(Struct, frozen=True):
    """What the diagnosis says about one pair."""

    tap: Judgement
    """Of its tap, over all steps."""
    failed: bool


class Analysis(Struct, frozen=True):
    """The diagnosis of a comparison and what it means for each pair."""

    diagnosis: Diagnosis
    taps: Taps
    profiles: Mapping[Key, FamilyProfile]
    judged_by_criterion: frozenset[str] = frozenset()
    """Names for which ``--diff-threshold`` has a criterion."""
    reference: ReferenceDiagnosis | None = None
    behind_update: str = ""
    """The criterion for what is behind an update of the weights; empty where there was none."""

    def of(self, pair: BundlePair) -> PairAnalysis | None:
        """What is said about a pair; None where its tap is not analysed, or has a criterion of its own."""
        found = self.profiles.get(pair.family)
        if found is None or found.profile.key.name in self.judged_by_criterion:
            return None
        judgement = self.diagnosis.judgement(found.profile.key)
        if judgement is None or judgement.judged == "not-judged":
            return None
        if pair.step is not None and is_behind_update(pair, self.taps.trained):
            return None
        worse = self.reference is not None and self.reference.worse in ("target", "both")
        faulty = judgement.judged in FAULTY or (worse and judgement.key == self.reference_place)
        return PairAnalysis(judgement, faulty and self._fails(pair, found, judgement))

    def with_verdict(
        self, pair: BundlePair, verdict: Verdict, measurement: Measurement, *, bitwise: bool = False
    ) -> Verdict:
        """The verdict on a pair with what the analysis says, which takes the place of the default criterion.

        What fails for another reason (replicas, missing tokens, NaN that meet no criterion) still does.
        """
        if not bitwise:
            verdict = self._behind_update(pair, verdict, measurement)
        found = None if bitwise else self.of(pair)
        if found is not None and not found.failed and is_behind_update(pair, self.taps.trained):
            return verdict  # of several steps, the later ones of which the analysis leaves out
        if found is None or not isinstance(measurement, TensorMeasurement) or verdict.judgement is None:
            return verdict
        difference = measurement.difference
        if difference is None or math.isnan(difference.rel):
            return verdict
        criterion = Criterion(not found.failed, CRITERION)
        failed = found.failed or not all(verdict.replicas) or any(one.severity == "error" for one in verdict.said)
        said = tuple([one for one in verdict.said if found.failed or one.name not in NOISE])
        return Verdict(
            "failed" if failed else "passed",
            criterion,
            verdict.downcast,
            verdict.replicas,
            said,
            verdict.failure,
            found.tap,
        )

    def _behind_update(self, pair: BundlePair, verdict: Verdict, measurement: Measurement) -> Verdict:
        """The verdict on what is computed with weights that an optimizer has changed, or on these."""
        if not self.behind_update or not isinstance(measurement, TensorMeasurement) or measurement.difference is None:
            return verdict
        by_default = verdict.judgement is not None and verdict.judgement.predicate == DEFAULT_PREDICATE
        if pair.name in self.judged_by_criterion or not by_default or not is_behind_update(pair, self.taps.trained):
            return verdict
        criterion = judge(measurement.difference, self.behind_update)
        profile = self.profiles.get(pair.family)
        drift = profile.drifts.get(pair.step) if profile is not None and pair.step is not None else None
        if drift is not None and criterion.passed:
            criterion = Criterion(drift.passed, drift.predicate)
        said = tuple([one for one in verdict.said if not criterion.passed or one.name not in NOISE])
        failed = not criterion.passed or not all(verdict.replicas) or any(one.severity == "error" for one in said)
        return replace(verdict, category="failed" if failed else "passed", judgement=criterion, said=said)

    @property
    def reference_place(self) -> TapKey | None:
        """Where the target is worse against the reference than the baseline."""
        return None if self.reference is None else self.reference.place

    def _fails(self, pair: BundlePair, found: FamilyProfile, judgement: Judgement) -> bool:
        """Whether rows of a pair stand out. Where error was introduced something fails, be it ever so small: then the
        rows above the floor, or all that differ. What inherits too little to stand out is as good as right."""
        own = _rows_of(pair, found.steps)
        error = found.profile.error
        beyond = error > judgement.floor * ROW_FLOORS
        if judgement.judged == "introduced-here":
            for limit in (judgement.floor, 0.0):
                beyond = beyond if beyond.any() else error > limit
        return bool(beyond[own].any())


SIDES = ("baseline", "target")
FAULTY = ("introduced-here", "inherited-from")


def analyse(
    profiles: Mapping[Key, FamilyProfile], taps: Taps, options: Options, calibration: Calibration | None = None
) -> Analysis:
    """Diagnose from the profiles of all families."""
    chosen = _analysis_options(taps, options, calibration)
    diagnosis = diagnose([found.profile for found in profiles.values()], taps.graph, chosen)
    notes = list(_rounded(taps.facts.structure.quantisation))
    if taps.problem is not None:
        notes.append(f"the declared inputs of the taps are not used: {taps.problem}")
    if calibration is not None and (unknown := calibration.unknown_taps(list(taps.families))):
        notes.append(f"the calibration has floors for taps that are not recorded: {', '.join(unknown[:5])}")
    if taps.of_gradients and taps.coarsest[0] != taps.coarsest[1]:
        half, side = next((one, name) for one, name in zip(taps.coarsest, SIDES, strict=True) if one != "float32")
        notes.append(
            f"gradients of the {side} were computed in {half}, as float32 that they are stored in shows; those of the "
            "other side in float32, or they are sums of several ranks or micro-batches"
        )
    dtypes = {
        dtype for one in profiles.values() for dtype in (one.profile.baseline_dtype, one.profile.target_dtype)
    }.union(taps.coarsest)
    behind = "" if taps.trained is None else limit(dtypes)
    diagnosis = replace(
        diagnosis,
        notes=(*notes, *diagnosis.notes),
        trained=None if taps.trained is None else (taps.trained, behind),
    )
    return Analysis(diagnosis, taps, profiles, chosen.ignored, behind_update=behind)


def _rounded(quantisation: Quantisation) -> Iterator[str]:
    """What quantised models round, which explains more than the dtypes of taps do."""
    for what, (baseline, target) in (
        ("inputs of matrix products", quantisation.activations),
        ("cached keys and values", quantisation.cache),
    ):
        if baseline is not None and baseline == target:
            yield f"Both models round {what} to {baseline}; floors allow for that"
        elif baseline is not None or target is not None:
            sides = f"the baseline {_to(baseline)}, the target {_to(target)}"
            yield f"The models round {what} differently, {sides}; floors allow for that"


def _to(dtype: str | None) -> str:
    return "not at all" if dtype is None else f"to {dtype}"


def _analysis_options(taps: Taps, options: Options, calibration: Calibration | None) -> AnalysisOptions:
    rules = options.diff_threshold
    ignored = frozenset(
        key.name for family, key in taps.keys.items() if find_rule(rules, str(family[0][1])) is not None
    )
    return AnalysisOptions(
        calibration=calibration, ignored=ignored, other_engine=taps.other_engine, partings=taps.partings
    )


def with_reference(
    analysis: Analysis,
    baseline: Mapping[Key, FamilyProfile],
    target: Mapping[Key, FamilyProfile],
    options: Options,
    calibration: Calibration | None = None,
) -> Analysis:
    """The analysis with what a reference says of both sides; their profiles have the reference as their baseline."""
    found = diagnose_reference(
        [one.profile for one in baseline.values()],
        [one.profile for one in target.values()],
        analysis.taps.graph,
        _analysis_options(analysis.taps, options, calibration),
    )
    return replace(analysis, reference=found)


def _rows_of(pair: BundlePair, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    if pair.step is None:
        return np.ones(len(steps), np.bool_)
    found: npt.NDArray[np.bool_] = steps == pair.step
    return found


NOISE = ("scaled", "token-differs")
"""Remarks on single pairs that the analysis, which knows the noise, makes needless where it finds no fault."""

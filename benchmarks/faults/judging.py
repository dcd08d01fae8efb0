"""What the comparator says of two recordings, in the words of this benchmark. The one place that asks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import comparator
from benchmarks.faults.catalogue import Place

Verdict = Literal["agree", "differ", "error"]


@dataclass(frozen=True)
class Outcome:
    """A verdict on a pair of runs."""

    verdict: Verdict
    """``error``: it could not be compared, or nothing was."""
    place: Place | None
    """Where error was introduced first; None for runs that agree."""
    differs: bool
    """Whether any compared element differs at all; pairs that are the same bit for bit are no evidence."""
    nearest: float
    """The strongest test of all taps; from 1 on it is an alarm."""
    size: float | None = None
    """Relative L2 error at the expected place, the largest of all steps."""
    multiple: float | None = None
    """Error introduced at the expected place, as a multiple of its floor."""
    message: str = ""


def judge(baseline: Path, target: Path, expected: Place | None = None) -> Outcome:
    """Compare two runs, tokens aligned by identity. ``expected`` is the place whose size is asked for."""
    report = comparator.compare(baseline, target, token_aligner="smart")
    diagnosis = report.diagnosis
    measured = [
        (Place(finding.name, _layer(finding.tags.get("layer_id"))), finding.diff)
        for finding in report
        if finding.type == "comparison_tensor" and finding.diff is not None
    ]
    sizes = [diff.relative_l2 for place, diff in measured if place == expected and diff.relative_l2 is not None]
    multiples = [
        judgement.multiple
        for judgement in (diagnosis.judgements if diagnosis else ())
        if Place(judgement.key.name, judgement.key.layer) == expected and judgement.judged != "not-judged"
    ]
    place: Place | None = None
    if diagnosis is not None and diagnosis.place is not None:
        place = Place(diagnosis.place.name, diagnosis.place.layer)
    elif report.first_divergence is not None:
        first = report.first_divergence
        place = Place(first.name, _layer(first.tags.get("layer_id")))
    errors = report.of("errored")
    return Outcome(
        verdict="differ" if place is not None else "agree" if report.passed else "error",
        place=place,
        differs=any(diff.differing > 0 for _, diff in measured),
        nearest=diagnosis.nearest if diagnosis else 0.0,
        size=max(sizes, default=None),
        multiple=max(multiples, default=None),
        message=str(errors[0]) if errors else "",
    )


def _layer(tag: object) -> int | None:
    return None if tag is None else int(str(tag))

"""Why a comparison fails, in sentences: what the diagnosis, which looks at errors of taps alone, does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, field

from comparator.options import SIDES, Side
from comparator.report.records import (
    Comparison,
    ErroredComparison,
    SkippedComparison,
    TensorComparison,
    ValueComparison,
)
from comparator.verdict.judge import Said

if TYPE_CHECKING:
    from comparator.diagnosis import Diagnosis

MOST_SAID = 3
"""Reasons that one paragraph lists."""


class Reasons(Struct):
    """Collects what made findings fail, as they go by."""

    replicas: dict[Side, list[str]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """Per side the tensors whose replicas are not the same, each with how they differ."""
    others: list[str] = field(default_factory=list)
    """Findings that fail for another reason than error that the diagnosis speaks of."""
    behind_update: bool = False
    """Whether a criterion does not hold, such as that for what was computed with updated weights."""
    by_diagnosis: int = 0
    """Findings that fail because of error that the diagnosis, or the reference, speaks of."""

    def look_at(self, finding: Comparison) -> None:
        """Take in what holds whether or not the finding may fail."""
        if not isinstance(finding, TensorComparison) or not finding.replicated_checks:
            return
        for side in SIDES:
            apart = [check for check in finding.replicated_checks if check.side == side and not check.passed]
            if apart:
                gap = f"differ by {apart[0].diff.max_abs_diff:.3g}" if apart[0].diff else "have other shapes"
                self.replicas[side].append(f"{_place(finding)} over {apart[0].axis} ({gap})")

    def add(self, finding: Comparison) -> None:
        """Take in a finding that makes the comparison fail."""
        if isinstance(finding, TensorComparison) and _fails_by_diagnosis(finding):
            self.by_diagnosis += 1
        else:
            self.others.append(f"{_place(finding)}: {_why(finding)}")
            if isinstance(finding, TensorComparison) and finding.diff is not None and not finding.diff.passed:
                self.behind_update = True

    def before(self) -> str:
        """What comes before all else: replicas of one side that disagree are a fault of that side alone."""
        sentences = []
        for side in SIDES:
            found = self.replicas[side]
            if found:
                more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
                sentences.append(
                    f"Replicas of the {side}, which should be the same on all its ranks, are not: {found[0]}{more}; "
                    f"that is a fault of the {side} alone."
                )
        return " ".join(sentences)

    def after(self, diagnosis: Diagnosis | None, exit_code: int, errors: Sequence[Said]) -> str:
        """Why the exit code is not what the diagnosis lets one expect; nothing where it is.

        ``errors``: what is wrong with the runs and the comparison as a whole.
        """
        verdict = None if diagnosis is None else diagnosis.verdict
        if exit_code == 0:
            allowed = verdict == "differ"
            return "The exit code is 0 all the same, because these failures are allowed." if allowed else ""
        if verdict == "differ" and self.by_diagnosis:
            return ""
        listed = [*(one.message for one in errors), *self.others]
        if not listed:
            return ""
        more = f"; and {len(listed) - MOST_SAID} more reasons" if len(listed) > MOST_SAID else ""
        if self.behind_update and diagnosis is not None and diagnosis.trained is not None:
            return f"The runs part there: {'; '.join(listed[:MOST_SAID])}{more}."
        return f"The exit code is {exit_code} for another reason: {'; '.join(listed[:MOST_SAID])}{more}."


def _place(finding: Comparison) -> str:
    step = "" if finding.location.step is None else f" step {finding.location.step}"
    return finding.label + step


def _fails_by_diagnosis(finding: TensorComparison) -> bool:
    from comparator.verdict.analysis import CRITERION  # where nothing fails, and of dumps, it is not loaded

    diff = finding.diff
    return diff is not None and diff.predicate == CRITERION and not diff.passed


def _why(finding: Comparison) -> str:
    match finding:
        case ErroredComparison():
            return finding.exception_message
        case SkippedComparison():
            return finding.message or finding.reason
        case ValueComparison():
            return "the values differ"
        case _:
            return _why_tensor(finding)


def _why_tensor(finding: TensorComparison) -> str:
    if finding.shape_mismatch:
        return f"shapes differ, {finding.unified_shape} against {finding.target.shape}"
    if finding.errors:
        return finding.errors[0].message
    if finding.diff is not None and not finding.diff.passed:
        return f"{finding.diff.predicate} does not hold"
    return "its replicas are not the same"

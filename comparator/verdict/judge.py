"""Decide whether a difference passes, and say in words what stands out about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from comparator.errors import PairError
from comparator.measure.difference import Difference, Measured
from comparator.options import Options
from comparator.verdict.criteria import DEFAULT_PREDICATE, EXACT_PREDICATE, find_rule, satisfied

SCALE_NOTICEABLE = 5e-3
"""A factor this far from 1 that explains most of a difference is no rounding error."""
SCALE_EXPLAINS = 0.5
TOKEN_NOTICEABLE = 0.01
"""``rel`` of one token (a tenth of its norm) that is worth a remark although the whole tensor passes."""


@dataclass(frozen=True)
class Verdict:
    """Whether one difference meets the criterion for its tensor."""

    passed: bool
    predicate: str


def predicate_for(name: str, options: Options, *, integers: bool) -> str:
    """The criterion for tensors called ``name``.

    Raises PairError when rules were given and none matches. Integers and booleans must be equal by default.
    """
    if options.diff_threshold:
        rule = find_rule(options.diff_threshold, name)
        if rule is None:
            patterns = ", ".join(repr(rule.pattern) for rule in options.diff_threshold)
            raise PairError(
                f"{name!r} matches no pattern of --diff-threshold ({patterns})",
                hint="add a last pair '.*' 'rel <= 0.001'",
            )
        return rule.predicate
    return EXACT_PREDICATE if integers and options.exact_integers else DEFAULT_PREDICATE


def judge(difference: Difference, predicate: str, max_token_rel: float | None = None) -> Verdict:
    """Apply a criterion. A NaN among the metrics meets none, whatever it says.

    ``max_token_rel`` is the largest ``rel`` of a single token; None where tokens cannot be told apart.
    """
    metrics = {
        "rel": difference.rel,
        "max_abs": difference.max_abs,
        "mean_abs": difference.mean_abs,
        "relative_l2": difference.relative_l2,
        "differing": float(difference.differing),
        "elements": float(difference.elements),
        "max_token_rel": difference.rel if max_token_rel is None else max_token_rel,
    }
    defined = not any(math.isnan(metrics[name]) for name in ("rel", "max_abs", "mean_abs"))
    return Verdict(defined and satisfied(predicate, metrics), predicate)


def remarks(measured: Measured, passed: bool, max_token_rel: float | None = None) -> list[tuple[str, str]]:
    """What a reader should know beyond the metrics: pairs of a category and a sentence."""
    found: list[tuple[str, str]] = []
    difference = measured.difference
    for side, statistics in (("baseline", measured.baseline), ("target", measured.target)):
        if statistics.nan or statistics.infinite:
            found.append(
                (
                    "non_finite",
                    f"{side} holds {statistics.nan} NaN and {statistics.infinite} infinite of "
                    f"{difference.elements} elements",
                )
            )
    if difference.nonfinite_equal and not passed:
        found.append(
            (
                "non_finite",
                f"{difference.nonfinite_equal} of them are the same at the same place on both sides; --equal-nan "
                "accepts those",
            )
        )
    if abs(difference.scale - 1) >= SCALE_NOTICEABLE and difference.scale_explains >= SCALE_EXPLAINS:
        found.append(
            (
                "scaled",
                f"target is {difference.scale:.4g} times the baseline: that factor explains "
                f"{difference.scale_explains:.0%} of the difference, which rounding would not",
            )
        )
    if passed and max_token_rel is not None and max_token_rel > TOKEN_NOTICEABLE:
        found.append(
            (
                "token",
                f"one token alone differs by rel {max_token_rel:.3g}, which the others hide; "
                "--diff-threshold 'REGEX' 'max_token_rel <= 0.001' judges every token by itself",
            )
        )
    return found

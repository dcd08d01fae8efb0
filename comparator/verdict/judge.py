"""Decide whether what was measured passes, and say in words what stands out about it: numbers in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from comparator.errors import PairError
from comparator.measure.difference import Difference
from comparator.measure.measurement import (
    Failure,
    HashMeasurement,
    Measurement,
    ReplicaNumbers,
    Skipped,
    StatisticsMeasurement,
    TensorMeasurement,
    ValueMeasurement,
)
from comparator.messages import MESSAGES, Severity
from comparator.options import Options
from comparator.plan.facts import TokenNumbers
from comparator.plan.selection import LeftOut
from comparator.plan.tokens import counts_against
from comparator.rules import Rules
from comparator.verdict.criteria import DEFAULT_PREDICATE, EXACT_PREDICATE, compile_predicate, find_rule

if TYPE_CHECKING:
    from comparator.diagnosis import Judgement as TapJudgement

REPLICA_TOLERANCE = 1e-6
"""Largest absolute difference between replicas that still counts as the same (SGLang's comparator uses it)."""
SCALE_NOTICEABLE = 5e-3
"""A factor this far from 1 that explains most of a difference is no rounding error."""
SCALE_EXPLAINS = 0.5
TOKEN_NOTICEABLE = 0.01
"""``rel`` of one token (a tenth of its norm) that is worth a remark although the whole tensor passes."""

Category = Literal["passed", "failed", "skipped", "errored"]


class Judgement(Struct, frozen=True):
    """Whether one difference meets the criterion for its tensor."""

    passed: bool
    predicate: str


class Said(Struct, frozen=True):
    """Something to know about a pair, under one of the names of ``comparator.messages``."""

    severity: Severity
    name: str
    message: str


class Verdict(Struct, frozen=True):
    """What is decided about one pair."""

    category: Category
    judgement: Judgement | None = None
    downcast: Judgement | None = None
    replicas: tuple[bool, ...] = ()
    """Per replica whether it agrees with the one that is used."""
    said: tuple[Said, ...] = ()
    failure: Failure | None = None
    """Why it could not be judged; None when it could, or when it was not even measured."""
    analysis: TapJudgement | None = None
    """What the analysis of all pairs says about the tap; None where it was not analysed."""

    @property
    def wants_detail(self) -> bool:
        """Whether a reader will want to know how the differences are distributed."""
        return self.category == "failed" and (self.judgement is None or not self.judgement.passed)


def judge_pair(
    measurement: Measurement, name: str, left_out: tuple[LeftOut, ...], options: Options, rules: Rules
) -> Verdict:
    """The verdict on one measurement of a tensor or value called ``name``."""
    unreadable = [say("unreadable-file", out.reason, options) for out in left_out if out.name == "unreadable-file"]
    try:
        verdict = _judge(measurement, name, options, rules)
    except PairError as error:
        return Verdict("errored", failure=Failure(error.name, "PairError", str(error), error.hint, error.hint))
    if verdict.category == "errored" or not unreadable:
        return verdict
    said = (*unreadable, *verdict.said)
    failed = any(one.severity == "error" for one in said)
    return Verdict(
        "failed" if failed else verdict.category, verdict.judgement, verdict.downcast, verdict.replicas, said
    )


def _judge(measurement: Measurement, name: str, options: Options, rules: Rules) -> Verdict:
    match measurement:
        case TensorMeasurement():
            return _judge_tensor(measurement, name, options, rules)
        case HashMeasurement():
            equal = not measurement.unequal
            said = () if equal else (say("fingerprints-differ", measurement.unequal, options),)
            return Verdict("passed" if equal else "failed", said=said)
        case StatisticsMeasurement():
            return _judge_statistics(measurement, name, options)
        case ValueMeasurement():
            where = f"{measurement.path or 'value'}: {measurement.difference}"
            said = () if measurement.path is None else (say("value-differs", where, options),)
            return Verdict("passed" if measurement.equal else "failed", said=said)
        case Skipped():
            reason = say(measurement.name, measurement.message, options)
            found = [say(one.name, one.message, options) for one in measurement.remarks]
            said = (*(() if reason.severity == "info" else (reason,)), *found)
            failed = any(one.severity == "error" for one in said)
            return Verdict("failed" if failed else "skipped", said=said)
        case Failure():
            return Verdict("errored")


def _judge_tensor(measurement: TensorMeasurement, name: str, options: Options, rules: Rules) -> Verdict:
    exact = measurement.integers and rules.exact_integers
    predicate = predicate_for(name, options, integers=exact)
    replicas = tuple([replica_agrees(one) for one in measurement.replicas])
    said = [
        # SGLang's comparator joins rows whatever their tokens are.
        say("tokens-joined" if one.name == "other-tokens" and not rules.strict_runs else one.name, one.message, options)
        for one in measurement.remarks
    ]
    tokens = measurement.tokens
    if tokens is not None and (tokens.only_baseline or tokens.only_target):
        said.extend(_share_errors(tokens, options, cut=rules.grouping == "tags"))
    difference = measurement.difference
    if difference is None:
        return Verdict("failed", replicas=replicas, said=tuple(said))
    judgement = judge(difference, predicate, measurement.max_token_rel)
    if measurement.same_bits is not None:
        judgement = Judgement(measurement.same_bits, "equal bits")
    said.extend([say(*one, options) for one in remarks(measurement, difference, judgement.passed)])
    failed = bool(said) and any(one.severity == "error" for one in said)
    passed = judgement.passed and not failed and all(replicas)
    downcast = None if measurement.downcast is None else judge(measurement.downcast, predicate)
    return Verdict("passed" if passed else "failed", judgement, downcast, replicas, tuple(said))


def _judge_statistics(measurement: StatisticsMeasurement, name: str, options: Options) -> Verdict:
    judgement = judge(measurement.difference, predicate_for(name, options, integers=False))
    left, right = (math.prod(shape) for shape in measurement.shapes)
    note = "compared by their statistics: min, max, mean and L2 norm; equal ones do not prove equal tensors"
    said = (say("compared-by-statistics", note, options),)
    passed = judgement.passed and left == right and said[0].severity != "error"
    return Verdict("passed" if passed else "failed", judgement, said=said)


def replica_agrees(replica: ReplicaNumbers) -> bool:
    """Whether a replica is the same as the one that is used."""
    return replica.difference is not None and (replica.difference.max_abs <= REPLICA_TOLERANCE or replica.identical)


def say(name: str, message: str, options: Options) -> Said:
    """A message as serious as its name is by default, unless a switch says otherwise."""
    severity = MESSAGES[name].severity
    if name in options.error:
        severity = "error"
    elif name in options.allow and severity == "error":
        severity = "warning"
    return Said(severity, name, message)


def predicate_for(name: str, options: Options, *, integers: bool) -> str:
    """The criterion for tensors called ``name``; ``integers`` are those that must be equal by default.

    Raises PairError when rules were given and none matches.
    """
    if options.diff_threshold:
        rule = find_rule(options.diff_threshold, name)
        if rule is None:
            patterns = ", ".join(repr(rule.pattern) for rule in options.diff_threshold)
            raise PairError(
                f"{name!r} matches no pattern of --diff-threshold ({patterns})",
                hint="add a last pair '.*' 'rel <= 0.001'",
                name="no-criterion",
            )
        return rule.predicate
    return EXACT_PREDICATE if integers else DEFAULT_PREDICATE


def judge(difference: Difference, predicate: str, max_token_rel: float | None = None) -> Judgement:
    """Apply a criterion. A NaN among the metrics meets none, whatever it says.

    ``max_token_rel`` is the largest ``rel`` of a single token; None where tokens cannot be told apart.
    """
    criterion = compile_predicate(predicate)
    metrics = {name: _METRICS[name](difference, max_token_rel) for name in criterion.names}
    defined = not (math.isnan(difference.rel) or math.isnan(difference.max_abs) or math.isnan(difference.mean_abs))
    return Judgement(defined and criterion.holds(metrics), predicate)


_METRICS: Mapping[str, Callable[[Difference, float | None], float]] = {
    "rel": lambda difference, _: difference.rel,
    "max_abs": lambda difference, _: difference.max_abs,
    "mean_abs": lambda difference, _: difference.mean_abs,
    "relative_l2": lambda difference, _: difference.relative_l2,
    "differing": lambda difference, _: float(difference.differing),
    "elements": lambda difference, _: float(difference.elements),
    "max_token_rel": lambda difference, of_token: difference.rel if of_token is None else of_token,
}
"""What ``criteria.METRICS`` names; of most criteria one is looked at."""


def remarks(measurement: TensorMeasurement, difference: Difference, passed: bool) -> list[tuple[str, str]]:
    """What a reader should know beyond the metrics: pairs of a name and a sentence."""
    found: list[tuple[str, str]] = []
    for side, numbers in (("baseline", measurement.baseline), ("target", measurement.target)):
        statistics = numbers.statistics
        if statistics.nan or statistics.infinite:
            found.append(
                (
                    "non-finite",
                    f"{side} holds {statistics.nan} NaN and {statistics.infinite} infinite of "
                    f"{difference.elements} elements",
                )
            )
    if difference.nonfinite_equal and not passed:
        found.append(
            (
                "non-finite",
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
    token = measurement.max_token_rel
    if passed and token is not None and token > TOKEN_NOTICEABLE:
        found.append(
            (
                "token-differs",
                f"one token alone differs by rel {token:.3g}, which the others hide; "
                "--diff-threshold 'REGEX' 'max_token_rel <= 0.001' judges every token by itself",
            )
        )
    return found


def _share_errors(tokens: TokenNumbers, options: Options, *, cut: bool) -> Iterable[Said]:
    lost = {
        f"{reason} ({side})": count
        for side, only in (("baseline", tokens.only_baseline), ("target", tokens.only_target))
        for reason, count in only.items()
        if counts_against(reason, cut=cut)
    }
    missing = sum(lost.values())
    if not missing or tokens.matched >= options.min_matched * (tokens.matched + missing):
        return
    listed = ", ".join(f"{count} {reason}" for reason, count in lost.items())
    message = (
        f"only {tokens.matched} of {tokens.matched + missing} tokens computed on both sides could be compared: "
        f"{listed}; --min-matched allows a smaller share"
    )
    yield say("too-few-tokens-matched", message, options)

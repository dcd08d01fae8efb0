"""Pass criteria: ``rel <= 0.0085 or max_abs <= 1e-3``, in the expression language of filters, over numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from comparator.errors import ComparatorError
from comparator.options import ThresholdRule
from comparator.patterns import compiled, fullmatch
from dumper.rules.expressions import Expression, ExpressionError

METRICS = ("rel", "max_abs", "mean_abs", "relative_l2", "differing", "elements", "max_token_rel")
"""Names that a criterion may use; ``comparator.measure.difference.Difference`` says what they are. ``max_token_rel`` is
the largest ``rel`` of a single token (``rel`` itself where tokens cannot be told apart)."""
DEFAULT_PREDICATE = "rel <= 0.001"
EXACT_PREDICATE = "max_abs <= 0"


def parse_rules(arguments: Sequence[str]) -> tuple[ThresholdRule, ...]:
    """Read the arguments of ``--diff-threshold``: one number for ``rel``, or pairs of pattern and criterion.

    Raises ComparatorError for an odd number of arguments, a bad pattern or a bad criterion.
    """
    if not arguments:
        return ()
    if len(arguments) == 1:
        try:
            limit = float(arguments[0])
        except ValueError:
            raise ComparatorError(
                f"--diff-threshold {arguments[0]!r} is no number; give one number (the largest rel), or pairs: "
                "--diff-threshold '.*expert.*' 'rel <= 0.01 or max_abs <= 1e-3' '.*' 'rel <= 0.001'"
            ) from None
        return (ThresholdRule(".*", f"rel <= {limit}"),)
    if len(arguments) % 2:
        raise ComparatorError(
            f"--diff-threshold takes one number or pairs of pattern and criterion, not {len(arguments)} arguments"
        )
    rules = tuple(
        ThresholdRule(pattern, predicate) for pattern, predicate in zip(arguments[::2], arguments[1::2], strict=True)
    )
    for rule in rules:
        compiled(rule.pattern, "--diff-threshold")
        compile_predicate(rule.predicate)
    return rules


def find_rule(rules: Sequence[ThresholdRule], name: str) -> ThresholdRule | None:
    """The first rule whose pattern matches the whole of ``name``."""
    for rule in rules:
        if fullmatch(rule.pattern, name):
            return rule
    return None


def satisfied(predicate: str, metrics: Mapping[str, float]) -> bool:
    """Whether the metrics meet the criterion; a comparison with NaN is never met."""
    return compile_predicate(predicate).holds(metrics)


@lru_cache(maxsize=1024)
def compile_predicate(text: str) -> Expression:
    """Parse a criterion; raises ComparatorError that names what is not allowed."""
    try:
        return Expression(text, kind="criterion", names=METRICS, numbers=True)
    except ExpressionError as error:
        raise ComparatorError(str(error)) from None

"""Pass criteria: ``rel <= 0.0085 or max_abs <= 1e-3``, parsed once against a whitelist, never evaluated as code."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from comparator.errors import ComparatorError
from comparator.options import ThresholdRule

METRICS = ("rel", "max_abs", "mean_abs", "relative_l2", "differing", "elements", "max_token_rel")
"""Names that a criterion may use; ``comparator.measure.difference.Difference`` says what they are.
``max_token_rel`` is the
largest ``rel`` of a single token (``rel`` itself where tokens cannot be told apart)."""
DEFAULT_PREDICATE = "rel <= 0.001"
EXACT_PREDICATE = "max_abs <= 0"

Metrics = Mapping[str, float]
Expression = Callable[[Metrics], float]

_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


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
        check_pattern(rule.pattern, "--diff-threshold")
        compile_predicate(rule.predicate)
    return rules


def check_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """Compile a regular expression; ComparatorError says which argument holds a bad one."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ComparatorError(f"{where}: {pattern!r} is not a regular expression: {error}") from None


def find_rule(rules: Sequence[ThresholdRule], name: str) -> ThresholdRule | None:
    """The first rule whose pattern matches the whole of ``name``."""
    for rule in rules:
        if re.fullmatch(rule.pattern, name):
            return rule
    return None


def satisfied(predicate: str, metrics: Metrics) -> bool:
    """Whether the metrics meet the criterion; a comparison with NaN is never met."""
    return bool(compile_predicate(predicate)(metrics))


@lru_cache(maxsize=1024)
def compile_predicate(text: str) -> Expression:
    """Turn a criterion into a function; raises ComparatorError that names what is not allowed."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise ComparatorError(f"cannot read the criterion {text!r}: {error}") from None
    return _build(tree.body, text)


def _build(node: ast.expr, text: str) -> Expression:
    if isinstance(node, ast.BoolOp):
        parts = [_build(value, text) for value in node.values]
        if isinstance(node.op, ast.And):
            return lambda metrics: all(part(metrics) for part in parts)
        return lambda metrics: any(part(metrics) for part in parts)
    if isinstance(node, ast.UnaryOp):
        return _unary(node, text)
    if isinstance(node, ast.Compare):
        return _compare(node, text)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        apply = _ARITHMETIC[type(node.op)]
        left, right = _build(node.left, text), _build(node.right, text)
        return lambda metrics: apply(left(metrics), right(metrics))
    leaf = _leaf(node)
    if leaf is not None:
        return leaf
    raise ComparatorError(
        f"the criterion {text!r} contains {ast.unparse(node)!r}; allowed are {', '.join(METRICS)}, numbers, "
        "comparisons, and, or, not, + - * /"
    )


def _leaf(node: ast.expr) -> Expression | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        constant = float(node.value)
        return lambda metrics: constant
    if isinstance(node, ast.Name) and node.id in METRICS:
        name = node.id
        return lambda metrics: metrics[name]
    return None


def _unary(node: ast.UnaryOp, text: str) -> Expression:
    operand = _build(node.operand, text)
    if isinstance(node.op, ast.Not):
        return lambda metrics: not operand(metrics)
    if isinstance(node.op, ast.USub):
        return lambda metrics: -operand(metrics)
    if isinstance(node.op, ast.UAdd):
        return operand
    raise ComparatorError(f"the criterion {text!r} contains {ast.unparse(node)!r}, which is not allowed")


def _compare(node: ast.Compare, text: str) -> Expression:
    for op in node.ops:
        if type(op) not in _COMPARISONS:
            raise ComparatorError(f"the criterion {text!r} contains {ast.unparse(node)!r}, which is not allowed")
    operators = [_COMPARISONS[type(op)] for op in node.ops]
    values = [_build(value, text) for value in (node.left, *node.comparators)]

    def evaluate(metrics: Metrics) -> bool:
        numbers = [value(metrics) for value in values]
        return all(apply(left, right) for apply, left, right in zip(operators, numbers, numbers[1:], strict=False))

    return evaluate

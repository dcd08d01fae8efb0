"""The expression language: it means what Python means, says what is wrong, and takes no longer than it has to."""

from __future__ import annotations

import importlib.util
import math
import operator
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumper.rules.expressions import LONGEST_EXPRESSION, Expression, ExpressionError, compile_pattern

VALUES = {"name": "model.layers.3.attn_output", "layer_id": 3, "rank": 0, "scale": 0.5, "phase": "decode"}
needs_re2 = pytest.mark.skipif(
    importlib.util.find_spec("re2") is None, reason="google-re2 is not installed: make venv installs it"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer_id in [0, 3]", True),
        ("layer_id not in (0, 3)", False),
        ("name.startswith('model') and not rank", True),
        ("name.endswith(['mlp', 'output'])", True),
        ("1 <= layer_id < 3", False),
        ("'layers' in name", True),
        ("layer_id % 2 == 1 and layer_id // 2 == 1", True),
        ("scale / 2 == 0.25", True),
        ("+scale > -scale", True),
        ("phase.upper() == 'DECODE'", True),
        ("absent is None", True),
        ("absent > 3", False),
        ("not absent > 3", True),
        ("layer_id / rank > 0 or layer_id == 3", True),
        ("absent.startswith('x')", False),
        ("name[:5] == 'model' and name[-6:] == 'output'", True),
        ("name[0] == 'm'", True),
        ("name[99] == 'm' or absent[0] == 1", False),
        ("layer_id < 2 if phase == 'prefill' else layer_id == 3", True),
        ("(layer_id if absent else rank) == 0", True),
    ],
)
def test_it_means_what_it_says(text: str, expected: bool) -> None:
    assert Expression(text).holds(VALUES) is expected


@needs_re2
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"search('layers\\.[0-3]\\.attn', name)", True),
        ("search('^attn', name)", False),
        ("fullmatch('.*attn_output', name)", True),
        ("match('model', name)", True),
        ("match('attn', name)", False),
        ("match('model', name) is not None and match('attn', name) is None", True),
        ("fullmatch('attn_output', name)", False),
        ("search('3', layer_id)", True),
    ],
)
def test_regular_expressions(text: str, expected: bool) -> None:
    assert Expression(text).holds(VALUES) is expected


@needs_re2
@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){20}$", "(x+x+)+y"])
def test_no_pattern_backtracks_without_end(pattern: str) -> None:
    text = "a" * 20_000 + "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx!"
    assert not Expression(f"search({pattern!r}, name)").holds({"name": text})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("__import__('os')", "cannot say"),
        ("name.__class__", "cannot say"),
        ("name.format(rank)", "the methods"),
        ("[x for x in name]", "cannot say"),
        ("lambda: 1", "cannot say"),
        ("2 ** 100", "allowed are + - * / // %"),
        ("~rank", "allowed are not, - and +"),
        ("search(name, 'x')", "write it as search"),
        ("name.startswith('x', start=1)", "no keywords"),
        ("layer_id ==", "is not an expression"),
        ("", "is not an expression"),
        ("(" * 500, "expression"),
        ("x" * (LONGEST_EXPRESSION + 1), "characters long"),
        ("not " * 2000 + "x", ""),
    ],
)
def test_what_it_cannot_say_is_quoted(text: str, complaint: str) -> None:
    with pytest.raises(ExpressionError, match="filter") as caught:
        Expression(text)
    assert complaint in str(caught.value)


@needs_re2
@pytest.mark.parametrize("pattern", ["(", "(?=x)", r"(a)\1"])
def test_a_wrong_regular_expression(pattern: str) -> None:
    with pytest.raises(ExpressionError, match="the regular expression is wrong"):
        Expression(f"search({pattern!r}, name)")


# Numbers alone, with names that are known: the pass criteria of the comparator.


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rell <= 1", "names are rel, max_abs"),
        ("rel <= '1'", "allowed are numbers"),
        ("rel in [1]", "allowed are numbers"),
        ("rel.lower()", "allowed are numbers"),
    ],
)
def test_a_criterion_is_of_numbers(text: str, complaint: str) -> None:
    with pytest.raises(ExpressionError, match="the criterion") as caught:
        Expression(text, kind="criterion", names=("rel", "max_abs"), numbers=True)
    assert complaint in str(caught.value)


def test_a_comparison_with_nan_is_never_met() -> None:
    for text in ("rel <= 1", "rel > 1", "rel == rel", "rel - rel <= 0"):
        assert not Expression(text, numbers=True).holds({"rel": math.nan})


Pair = tuple[str, Callable[[dict[str, Any]], Any]]
"""An expression, and what it should give."""
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "and": lambda left, right: left and right,
    "or": lambda left, right: left or right,
}


def _joined(parts: st.SearchStrategy[Pair], *operators: str) -> st.SearchStrategy[Pair]:
    def join(left: Pair, sign: str, right: Pair) -> Pair:
        return f"({left[0]} {sign} {right[0]})", lambda values: OPERATORS[sign](left[1](values), right[1](values))

    return st.builds(join, parts, st.sampled_from(operators), parts)


def _negated(part: Pair) -> Pair:
    return f"(not {part[0]})", lambda values: not part[1](values)


def _expressions() -> st.SearchStrategy[Pair]:
    names: list[Pair] = [(name, operator.itemgetter(name)) for name in "ab"]
    constants: list[Pair] = [("0", lambda _: 0), ("2.5", lambda _: 2.5), ("-3", lambda _: -3)]
    numbers = st.recursive(
        st.sampled_from(names + constants), lambda inner: _joined(inner, "+", "-", "*"), max_leaves=6
    )
    comparisons = _joined(numbers, "<", "<=", ">", ">=", "==", "!=")
    return st.recursive(
        comparisons, lambda inner: st.one_of(_joined(inner, "and", "or"), inner.map(_negated)), max_leaves=6
    )


@given(_expressions(), st.integers(-5, 5), st.floats(-5, 5))
def test_numbers_and_logic_are_those_of_python(pair: Pair, a: int, b: float) -> None:
    text, expected = pair
    assert Expression(text).holds({"a": a, "b": b}) == expected({"a": a, "b": b})


@needs_re2
def test_a_pattern_meets_text_that_is_not_utf_8() -> None:
    """As the name of a file may be."""
    name = os.fsdecode(b"x\x80y")
    assert all(getattr(compile_pattern("x.y"), how)(name) for how in ("search", "match", "fullmatch"))
    assert compile_pattern("é").search("é")
    with pytest.raises(ExpressionError, match=r"write \. for them"):
        compile_pattern(name)

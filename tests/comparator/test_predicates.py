"""Pass criteria."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparator.errors import ComparatorError, PairError
from comparator.measure.difference import measure
from comparator.options import Options, ThresholdRule
from comparator.verdict.criteria import compile_predicate, parse_rules, satisfied
from comparator.verdict.judge import judge, predicate_for
from tests.comparator.fakes import values

METRICS = {"rel": 0.5, "max_abs": 2.0, "mean_abs": 1.0, "relative_l2": 0.1, "differing": 3.0, "elements": 8.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rel <= 0.5", True),
        ("rel < 0.5", False),
        ("rel <= 0.1 or max_abs <= 2", True),
        ("rel <= 0.1 and max_abs <= 2", False),
        ("not rel > 1", True),
        ("0 <= rel < 1 < max_abs", True),
        ("max_abs <= 2 * mean_abs", True),
        ("differing / elements < 0.4", True),
        ("rel > -1e-3", True),
    ],
)
def test_criteria(text: str, expected: bool) -> None:
    assert satisfied(text, METRICS) is expected


@pytest.mark.parametrize(
    "text",
    ["", "rel <=", "relative <= 1", "__import__('os')", "rel.real <= 1", "rel in [1]", "(lambda: 1)()", "'a' < rel",
     "rel <= 1 if 1 else 0", "f(rel)", "rel ** 2 < 1", "~rel < 1"],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ComparatorError, match="criterion"):
        compile_predicate(text)


@given(st.text(max_size=20))
def test_any_text_is_refused_or_compiled(text: str) -> None:
    with contextlib.suppress(ComparatorError):
        compile_predicate(text).holds(METRICS)


def test_nan_meets_no_criterion() -> None:
    spoiled = values(4)
    spoiled[1] = math.nan
    difference = measure(values(4), spoiled)
    assert not judge(difference, "rel <= 1e9").passed
    assert not judge(difference, "not rel > 1").passed


def test_rules() -> None:
    assert parse_rules(["0.01"]) == (ThresholdRule(".*", "rel <= 0.01"),)
    rules = parse_rules([".*expert.*", "rel <= 0.5", ".*", "rel <= 0"])
    options = Options(diff_threshold=rules)
    assert predicate_for("moe_expert_output", options, integers=False) == "rel <= 0.5"
    assert predicate_for("q", options, integers=True) == "rel <= 0"
    with pytest.raises(PairError, match="'q' matches no pattern"):
        predicate_for("q", Options(diff_threshold=rules[:1]), integers=False)
    assert predicate_for("q", Options(), integers=True) == "max_abs <= 0"


@pytest.mark.parametrize("arguments", [["x"], ["a", "rel<1", "b"], ["(", "rel < 1"], ["a", "b <= 1"]])
def test_bad_rules(arguments: list[str]) -> None:
    with pytest.raises(ComparatorError):
        parse_rules(arguments)

"""Which steps a rule wants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumper.rules.step_rule import StepRule


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10-12", [10, 11, 12]),
        ("3", [3]),
        ("18-", [18, 19]),
        ("first 2", [0, 1]),
        ("every 8", [0, 8, 16]),
        ("every 8 from 3", [3, 11, 19]),
        ("1, 4-5,every 10 from 9", [1, 4, 5, 9, 19]),
        ("", list(range(20))),
        ("all", list(range(20))),
    ],
)
def test_steps_wanted(text: str, wanted: list[int]) -> None:
    rule = StepRule.parse(text)
    assert [step for step in range(20) if rule.wants(step)] == wanted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("20-10", "ends before it begins"),
        ("first 0", "records nothing"),
        ("every 0", "stride of 0"),
        ("often", "cannot read 'often'"),
        ("3,,4", "cannot read ''"),
        ("-3", "cannot read '-3'"),
        ("1.5", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_quoted(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="steps") as caught:
        StepRule.parse(text)
    assert complaint in str(caught.value)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 200))
def test_a_range_wants_what_lies_in_it(first: int, length: int, step: int) -> None:
    assert StepRule.parse(f"{first}-{first + length}").wants(step) == (first <= step <= first + length)

"""Axis alignment by names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparator.align.rearrange import align_axes
from comparator.errors import PairError
from comparator.plan.axes import plan_axes
from tensortap.dims import parse_dims
from tests.comparator.fakes import values


def aligned(left: str, left_shape: tuple[int, ...], right: str, right_shape: tuple[int, ...]) -> tuple[object, object]:
    plan = plan_axes(parse_dims(left).dimensions, parse_dims(right).dimensions)
    return (
        align_axes(values(*left_shape), plan.baseline).shape,
        align_axes(values(*right_shape), plan.target).shape,
    )


@pytest.mark.parametrize(
    ("left", "left_shape", "right", "right_shape", "result"),
    [
        ("b s h", (2, 3, 4), "s b h", (3, 2, 4), (3, 2, 4)),
        ("t h d", (3, 2, 4), "t (h*d)", (3, 8), (3, 8)),
        ("t (h*d)", (3, 8), "t h d", (3, 2, 4), (3, 8)),
        ("h t d", (2, 3, 4), "t (h*d)", (3, 8), (3, 8)),
        ("d t h", (4, 3, 2), "t (h*d)", (3, 8), (3, 8)),
        ("1 s h", (1, 3, 4), "t h", (3, 4), (3, 4)),
        ("s 1 h", (3, 1, 4), "s h 1", (3, 4, 1), (3, 4)),
        ("t (a*b) c", (3, 8, 5), "c t (a*b)", (5, 3, 8), (5, 3, 8)),
    ],
)
def test_shapes(
    left: str, left_shape: tuple[int, ...], right: str, right_shape: tuple[int, ...], result: tuple[int, ...]
) -> None:
    assert aligned(left, left_shape, right, right_shape) == (result, result)


@given(st.permutations(["t", "h", "d", "e"]), st.permutations(["t", "h", "d", "e"]))
def test_any_order_comes_to_the_same_values(left: list[str], right: list[str]) -> None:
    names = ["t", "h", "d", "e"]
    tensor = values(2, 3, 4, 5)
    plan = plan_axes(parse_dims(" ".join(left)).dimensions, parse_dims(" ".join(right)).dimensions)
    one = align_axes(tensor.transpose([names.index(name) for name in left]), plan.baseline)
    other = align_axes(tensor.transpose([names.index(name) for name in right]), plan.target)
    np.testing.assert_array_equal(one, other)


def test_other_names_are_refused() -> None:
    with pytest.raises(PairError, match="baseline has 't h', target has 't d'"):
        plan_axes(parse_dims("t h").dimensions, parse_dims("t d").dimensions)


def test_overlapping_fusions_are_refused() -> None:
    with pytest.raises(PairError, match="two ways"):
        plan_axes(parse_dims("(a*b) c").dimensions, parse_dims("a (b*c)").dimensions)

"""Arrays as text: what numpy writes, to the letter."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.measure import quoting
from comparator.measure.quoting import quoted, quoted_first

FLOATS = st.one_of(
    st.floats(width=32),
    st.floats(-10, 10, width=32),
    st.sampled_from([0.0, -0.0, 1e-4, 1e6, 999999.94, 1e8, 0.5, 1 / 3, 1000.0, 16777216.0, 1.1754944e-38, 1e-45]),
    st.integers(-2000, 2000).map(float),
)


@pytest.mark.skipif(quoting._compiled is None, reason="the module is not compiled here")
def test_the_version_of_numpy_is_one_that_is_known() -> None:
    assert quoting._exponents_from() is not None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.lists(FLOATS, min_size=1, max_size=40))
def test_small_arrays(shape: list[int], values: list[float]) -> None:
    array = np.resize(np.array(values, np.float32), shape)
    assert quoted(array) == str(array)


def test_powers_of_two_and_random_bits() -> None:
    rng = np.random.default_rng(0)
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    for array in (powers, -powers[100:120], *rng.integers(0, 2**32, (60, 40), np.uint32).view(np.float32)):
        for one in (array, array.reshape(-1, 1), array[: array.size // 2 * 2].reshape(2, -1)):
            assert quoted(one) == str(one)
    for scale in (1e-3, 1.0, 30.0, 1e5):
        array = (scale * rng.standard_normal((7, 5, 5))).astype(np.float32)
        assert quoted(array) == str(array)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_first_elements_of_halves_and_others(lengths: list[tuple[int, int]], seed: int) -> None:
    shape = [length for length, _ in lengths]
    taken = tuple(min(length, most) for length, most in lengths)
    values = np.random.default_rng(seed).standard_normal(shape)
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64):
        for array in (values.astype(dtype), values.astype(dtype).T.copy().T):
            first = array[tuple(slice(0, length) for length in taken)].astype(np.float32)
            assert quoted_first(array, taken) == str(first)


def test_numbers_of_all_sizes() -> None:
    rng = np.random.default_rng(1)
    for power in range(-24, 9):
        array = (10.0**power * rng.standard_normal((20, 3))).astype(np.float32)
        for one in (*array, np.round(array), array.astype(ml_dtypes.bfloat16).astype(np.float32)):
            assert quoted(one) == str(one)


def test_what_numpy_summarizes_and_other_options() -> None:
    for array in (np.zeros((40, 40), np.float32), np.float32(2.5) * np.ones(()), np.zeros((2, 0), np.float32)):
        assert quoted(np.asarray(array, np.float32)) == str(np.asarray(array, np.float32))
    with np.printoptions(precision=2):
        assert quoted(np.array([1 / 3], np.float32)) == "[0.33]"

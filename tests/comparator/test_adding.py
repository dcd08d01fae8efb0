"""Summands of half precision: the compiled module against its definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.align import adding
from comparator.align.adding import add_halves, reference


@pytest.mark.skipif(adding._compiled is None, reason="the module is not compiled here")
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([ml_dtypes.bfloat16, np.float16]),
    st.lists(st.integers(0, 60), min_size=1, max_size=2),
    st.integers(1, 17),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_both_add_alike(dtype: type, shape: list[int], count: int, from_zero: bool, seed: int) -> None:
    """All bits but those of NaN."""
    rng = np.random.default_rng(seed)
    members = [rng.integers(0, 1 << 16, shape, np.uint16).view(dtype) for _ in range(count)]
    members[0][rng.random(shape) < 0.2] = -0.0
    if seed % 2:  # sums that are halfway between two numbers, and small ones
        with np.errstate(all="ignore"):
            members = [(one.astype(np.float32) % 1).astype(dtype) for one in members]
    found = add_halves(members, from_zero=from_zero)
    assert found is not None
    expected = reference.add(members, from_zero=from_zero)
    with np.errstate(all="ignore"):
        nan = np.isnan(expected.astype(np.float32))
        assert np.array_equal(np.isnan(found.astype(np.float32)), nan)
    assert np.array_equal(found.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


@pytest.mark.skipif(adding._compiled is None, reason="the module is not compiled here")
def test_every_number_is_rounded_alike() -> None:
    """A number and half of the distance to the next one, a bit less, and a bit more."""
    for dtype in (ml_dtypes.bfloat16, np.float16):
        numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        with np.errstate(all="ignore"):
            steps = np.spacing(np.abs(numbers.astype(np.float32))) * (1 << (15 if dtype != np.float16 else 12))
            for part in (0.5, 0.25, 0.75, -0.5, 1.0):
                others = (part * steps).astype(dtype)
                found = add_halves([numbers, others, others], from_zero=False)
                expected = reference.add([numbers, others, others], from_zero=False)
                assert found is not None
                nan = np.isnan(expected.astype(np.float32))
                assert np.array_equal(found.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


def test_what_is_added_otherwise() -> None:
    halves = np.zeros((2, 3), np.float16)
    assert add_halves([np.zeros(3, np.float32)], from_zero=False) is None
    assert add_halves([halves, np.zeros((3, 2), np.float16)], from_zero=False) is None
    assert add_halves([halves, halves.astype(ml_dtypes.bfloat16)], from_zero=False) is None
    turned = np.arange(6, dtype=np.float16).reshape(3, 2).T
    found = add_halves([halves, turned], from_zero=True)
    assert found is not None
    assert np.array_equal(found, turned)

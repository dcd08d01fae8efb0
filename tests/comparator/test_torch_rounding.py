"""The metrics that are rounded as torch rounds them, without torch, against torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.measure.torch_rounding import _rounded, _rounded_by_torch
from comparator.measure.torch_sums import sum_as_torch

SIZES = [*range(70), 127, 128, 1000, 8191, 8192, 32767, 32768, 65_537, 300_001, (1 << 20) + 5]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_those_of_torch_in_every_bit(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for size in SIZES:
        values = rng.standard_normal(size).astype(dtype)
        assert float(sum_as_torch(values)) == torch.from_numpy(values).sum().item(), size


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40_000), st.floats(0, 1), st.integers(0, 2**32))
def test_metrics_are_those_of_torch_in_every_bit(size: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size).astype(np.float32)
    y = (x + noise * rng.standard_normal(size)).astype(np.float32)
    if seed % 7 == 0:
        y[rng.integers(size)] = rng.choice([np.nan, np.inf, -np.inf])
    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        np.testing.assert_array_equal(_rounded(x, y), _rounded_by_torch(x, y))

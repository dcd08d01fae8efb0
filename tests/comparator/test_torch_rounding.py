"""The metrics that are rounded as torch rounds them, without torch, against torch."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.align.unshard import _sum_as_torch
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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_summands_that_cannot_be_written_to_are_added_as_torch_adds_them(dtype: str) -> None:
    summands = [torch.randn(5, 7).to(getattr(torch, dtype)) for _ in range(3)]
    bits = torch.int16 if dtype == "bfloat16" else None
    held = [one if bits is None else one.view(bits) for one in summands]
    arrays = [one.numpy() if bits is None else one.numpy().view(ml_dtypes.bfloat16) for one in held]
    for array in arrays:
        array.flags.writeable = False
    assert _sum_as_torch(arrays).astype(np.float64).tolist() == torch.stack(summands).sum(0).double().tolist()

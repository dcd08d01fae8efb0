"""The metrics that are rounded as torch rounds them, without torch, against torch."""

from __future__ import annotations

import random as random_module
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.align.unshard import _sum_as_torch
from comparator.measure import torch_sums
from comparator.measure.kernel.many import Places
from comparator.measure.torch_rounding import _rounded, _rounded_by_torch, difference_as_torch_in_bfloat16
from comparator.measure.torch_sums import reference, sums_as_torch
from dumper.values.dtypes import numpy_dtype

SIZES = [*range(70), 127, 128, 1000, 8191, 8192, 32767, 32768, 65_537, 300_001, (1 << 20) + 5]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(torch_sums, "_compiled", None)
    elif torch_sums._compiled is None:
        pytest.skip("the module is not compiled here")


@pytest.mark.usefixtures("threads", "kernel")
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float16"), ("float64", "int8")])
def test_sums_are_those_of_torch_in_every_bit(dtypes: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    for size in SIZES[1:]:
        x, y = ((10 * rng.standard_normal(size)).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
                for name in dtypes)  # fmt: skip
        left, right = (torch.from_numpy(side.astype(np.float32)) for side in (x, y))
        gap, wide = (right - left).abs(), (left.double(), right.double())
        norm = (wide[0] * wide[0] + wide[1] * wide[1]).sum().item()
        expected = gap.sum().item(), norm, (wide[0] * wide[1]).sum().item(), gap.max().item()
        assert sums_as_torch(x, y) == expected, size


@pytest.mark.skipif(torch_sums._compiled is None, reason="the module is not compiled here")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5000), st.integers(0, 9), st.integers(0, 2), st.sampled_from(["float16", "float32"]), st.integers()
)
def test_both_passes_agree_in_every_bit(size: int, start: int, instructions: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(abs(seed))
    x, y = (rng.standard_normal(start + size).astype(dtype) for _ in range(2))
    if seed % 3 == 0:
        y[rng.integers(start + size)] = rng.choice([np.nan, np.inf, -np.inf])
    compiled, kind = torch_sums._compiled, torch_sums._KINDS[dtype]
    try:
        assert compiled.limit(instructions) <= instructions
        found = compiled.measure(x.view(np.uint8), kind, y.view(np.uint8), kind, start, start + size)
    finally:
        compiled.limit(2)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found, reference.measure(x, y, start, start + size))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from(["bfloat16", "float16", "float32", "int8", "bool"]),
    st.sampled_from([1, 100, 1000]),
    st.integers(0, 2**32),
)
def test_sums_of_many_pairs_are_those_of_each(sizes: list[int], dtype: str, factor: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted, counts = numpy_dtype(dtype), factor * np.array(sizes)
    sides = [[(9 * rng.standard_normal(count)).astype(wanted) for count in counts.tolist()] for _ in range(2)]
    starts = wanted.itemsize * (np.cumsum(counts) - counts)
    x, y = (Places(np.concatenate([one.view(np.uint8) for one in side]).tobytes(), starts, wanted) for side in sides)
    found = torch_sums.sums_as_torch_of_each(x, y, counts)
    for one, left, right in zip(found.tolist(), *sides, strict=True):
        np.testing.assert_array_equal(one, sums_as_torch(left, right))


@pytest.mark.skipif(torch_sums._compiled is None, reason="the module is not compiled here")
def test_pairs_outside_the_data_are_refused() -> None:
    data, compiled, room = bytes(64), torch_sums._compiled, np.empty((1, 4))
    for start, size in ((-4, 1), (2, 1), (0, 17), (68, 1), (2**62, 1), (0, 2**62), (0, -1)):
        for sides in ((start, 0), (0, start)):
            places = [np.array([one]) for one in sides]
            with pytest.raises(ValueError, match="place or alignment"):
                compiled.measure_many(data, places[0], 2, data, places[1], 2, np.array([size]), room)


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
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("places", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_metrics_are_those_of_torch_wherever_elements_lie(places: tuple[int, int, int], dtype: type) -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((31, 40, 53)).astype(dtype) for _ in range(2))
    for side in (x, y):
        side.flags.writeable = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        left, right = x.transpose(places), y.transpose(places)
        assert _rounded(left, right) == _rounded_by_torch(left, right)
        assert _rounded(left[:, ::2], right[:, ::2]) == _rounded_by_torch(left[:, ::2], right[:, ::2])


SLICES = st.sampled_from([slice(None), slice(None, None, 2), slice(1, None), slice(None, -1), slice(None, None, 3)])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 17), SLICES), min_size=1, max_size=4), st.randoms(use_true_random=False),
    st.sampled_from(["both", "one", "elsewhere"]),
)  # fmt: skip
def test_metrics_are_those_of_torch_with_gaps(
    given_: list[tuple[int, slice]], random: random_module.Random, gaps: str
) -> None:
    """Of parts of arrays, whose dimensions lie in any order."""
    shape, slices = [length for length, _ in given_], tuple(part for _, part in given_)
    rng = np.random.default_rng(random.randrange(1 << 32))
    places = random.sample(range(len(shape)), len(shape))
    x = rng.standard_normal(shape).astype(np.float32)
    y = (x + 1e-3 * rng.standard_normal(shape)).astype(np.float32)
    if gaps == "elsewhere":
        y = np.pad(y, [(0, 2)] * len(shape))[tuple(slice(0, length) for length in shape)]
    left, right = (side[slices].transpose(places) for side in (x, y))
    right = np.ascontiguousarray(right) if gaps == "one" else right
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        np.testing.assert_array_equal(_rounded(left, right), _rounded_by_torch(left, right))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70_000), st.sampled_from([0, 1e-3, 1.0]), st.integers(0, 2**32))
def test_a_difference_in_bfloat16_is_that_of_torch_in_every_bit(size: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size).astype(np.float32)
    y = (x + noise * rng.standard_normal(size)).astype(ml_dtypes.bfloat16)
    if seed % 5 == 0:
        x[rng.integers(size)] = rng.choice([np.nan, np.inf, -np.inf])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        found = difference_as_torch_in_bfloat16(x, y)
    left = torch.from_numpy(x).bfloat16()
    right = torch.from_numpy(y.view(np.int16)).view(torch.bfloat16)
    gap = (right - left).abs()
    expected = gap.max().item(), gap.mean().item(), (int(gap.argmax()),)
    np.testing.assert_equal((found.max_abs, found.mean_abs, found.coordinate), expected)


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

from __future__ import annotations

import numpy as np
import pytest

from comparator.diagnosis.floors import UNIT_ROUNDOFF, floor_for, rounding_error, roundings_of_ranks

MEASURED_AT_BF16 = {
    "attention": 8e-3,
    "linear": 3e-3,
    "sum": 2.5e-3,
    "sum_without_identity": 4e-3,
    "mlp": 6e-3,
    "moe": 6e-3,
    "router": 4e-3,
    "norm": 3e-3,
    "logits": 3e-3,
    "combine": 2.5e-3,
}


@pytest.mark.parametrize(("operation", "measured"), MEASURED_AT_BF16.items())
def test_floors_at_bf16_are_those_that_were_measured(operation, measured):
    assert floor_for(operation, "bfloat16", "bfloat16").floor == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_one_rounding_has_the_error_of_the_formula(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.exp2(np.random.default_rng(0).uniform(0, 1, 200_000))
    significand = np.random.default_rng(1).uniform(1, 2, 200_000)
    for sample in (values, significand):
        stored = sample.astype(getattr(ml_dtypes, dtype, None) or dtype).astype(np.float64)
        found = np.linalg.norm(stored - sample) / np.linalg.norm(sample)
        assert found == pytest.approx(rounding_error(dtype), rel=0.12)


def test_floors_scale_with_the_unit_roundoff():
    half = floor_for("linear", "float16", "float16").floor
    brain = floor_for("linear", "bfloat16", "bfloat16").floor
    assert brain / half == pytest.approx(UNIT_ROUNDOFF["bfloat16"] / UNIT_ROUNDOFF["float16"], rel=1e-3)


def test_a_side_that_is_exact_rounds_half_the_variance():
    both = floor_for("sum", "bfloat16", "bfloat16").floor
    one = floor_for("sum", "bfloat16", "float64").floor
    assert one == pytest.approx(both / np.sqrt(2), rel=1e-3)


def test_long_reductions_matter_in_float32_and_not_in_bf16():
    short, long = (floor_for("linear", "float32", "float32", length=length).floor for length in (16, 65536))
    assert long > 10 * short
    short, long = (floor_for("linear", "bfloat16", "bfloat16", length=length).floor for length in (16, 65536))
    assert long == pytest.approx(short, rel=1e-3)


def test_partial_sums_in_the_dtype_raise_the_floor():
    assert roundings_of_ranks(1) == 0
    assert roundings_of_ranks(2) == 1
    floors = [floor_for("sum", "bfloat16", "bfloat16", ranks=ranks).floor for ranks in (1, 2, 4, 8)]
    assert floors == sorted(set(floors))

from __future__ import annotations

import numpy as np
import pytest

from comparator.arguments import check_options
from comparator.diagnosis.floors import (
    EXACT,
    QUANTISED,
    UNIT_ROUNDOFF,
    Quantisation,
    floor_for,
    rounding_error,
    roundings_of_ranks,
)
from comparator.errors import ComparatorError
from comparator.options import COARSE_DTYPES, Options

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


def coarse(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded as a quantised model does it, with a scale for each row."""
    import ml_dtypes

    largest = np.abs(values).max(-1, keepdims=True)
    if dtype == "int8":
        return np.round(values / largest * 127) * largest / 127
    kind = getattr(ml_dtypes, dtype)
    scale = float(ml_dtypes.finfo(kind).max) / largest
    return (values * scale).astype(kind).astype(np.float64) / scale


@pytest.mark.parametrize("dtype", [name for name in QUANTISED if name != "float4_e2m1fn"])
@pytest.mark.parametrize("noise", [1e-4, 3e-3, 0.03])
def test_what_rounding_coarsely_makes_of_small_noise_is_within_the_floor(dtype: str, noise: float) -> None:
    """Inputs that differ by rounding alone land on other numbers of the coarse format, here and there."""
    random = np.random.default_rng(0)
    values, weights = random.standard_normal((64, 512)), random.standard_normal((512, 256))
    others = values * (1 + noise * random.standard_normal(values.shape))
    first, second = (coarse(side, dtype) @ weights for side in (values, others))
    error = np.linalg.norm(second - first) / np.linalg.norm(first)
    floor = floor_for("linear", "bfloat16", "bfloat16", quantisation=Quantisation((dtype, dtype))).floor
    assert error <= 1.2 * np.hypot(1.05 * noise, floor)
    plain = floor_for("linear", "bfloat16", "bfloat16").floor
    if noise == 3e-3 and dtype != "int8":
        assert error > 1.75 * np.hypot(1.05 * noise, plain), "which the floor of bfloat16 does not explain"


def test_where_one_side_is_quantised_its_weights_are_as_well() -> None:
    sides = [Quantisation(("int8", None)), Quantisation(("int8", "int8"))]
    floors = [floor_for("linear", "float64", "float64", quantisation=one).floor for one in sides]
    assert floors[0] == pytest.approx(floors[1], rel=1e-6)


def test_what_a_quantised_model_does_not_round() -> None:
    quantisation = Quantisation(("float8_e4m3fn",) * 2)
    for operation in ("router", "logits", "norm", "sum", "embedding", "source"):
        plain, quantised = (
            floor_for(operation, "bfloat16", "bfloat16", quantisation=one) for one in (EXACT, quantisation)
        )
        assert plain == quantised
    cache = Quantisation(cache=("float8_e5m2",) * 2)
    assert floor_for("attention", "bfloat16", "bfloat16", quantisation=cache).floor > 0.05
    assert floor_for("mlp", "bfloat16", "bfloat16", quantisation=cache) == floor_for("mlp", "bfloat16", "bfloat16")


def test_the_names_of_coarse_dtypes_are_those_of_the_flags() -> None:
    assert set(COARSE_DTYPES) == {"none", *QUANTISED}


def test_a_dtype_that_nothing_is_rounded_to_is_refused_by_name():
    check_options(Options(activation_dtype="int8", kv_cache_dtype="none"))
    with pytest.raises(ComparatorError, match=r"--activation-dtype: 'fp8' is none of none, float8_e4m3fn"):
        check_options(Options(activation_dtype="fp8"))  # type: ignore[arg-type]

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from comparator.diagnosis import TapKey, diagnose_reference
from tests.comparator.diagnosis.simulator import Kernels, Model, profiles_of

MODEL = Model(3)
REFERENCE = MODEL.run(Kernels(dtype="float32"))


def against(run):
    profiles, graph = profiles_of(REFERENCE, run)
    return [replace(one, target_dtype="bfloat16") for one in profiles], graph


def scaled(factor):
    return lambda name, layer, value: value * np.float32(factor) if (name, layer) == ("attn_output", 1) else value


def noisy(name, layer, value):
    if (name, layer) != ("mlp_output", 0):
        return value
    return value + 0.1 * value.std() * np.random.default_rng(0).standard_normal(value.shape).astype(np.float32)


@pytest.mark.parametrize("kernels", [Kernels(eager=True), Kernels(pieces=4), Kernels(fused_norm=True)])
def test_two_right_sides(kernels):
    baseline, graph = against(MODEL.run())
    target, _ = against(MODEL.run(kernels))
    found = diagnose_reference(baseline, target, graph)
    assert (found.worse, found.place) == ("neither", None)
    assert all(1 / 1.5 < tap.ratio < 1.5 for tap in found.taps)


@pytest.mark.parametrize(
    ("fault", "place"), [(scaled(1.02), TapKey("attn_output", 1)), (noisy, TapKey("mlp_output", 0))]
)
def test_the_side_that_is_wrong_is_named_with_its_tap(fault, place):
    right, graph = against(MODEL.run())
    wrong, _ = against(MODEL.run(Kernels(), fault))
    assert (diagnose_reference(right, wrong, graph).worse, diagnose_reference(right, wrong, graph).place) == (
        "target",
        place,
    )
    assert diagnose_reference(wrong, right, graph).worse == "baseline"
    assert diagnose_reference(wrong, right, graph).place == place
    assert diagnose_reference(wrong, wrong, graph).worse == "both"


def in_rows(factor: float, rows: slice):
    """More error in some rows: what is left of rounding there is multiplied."""

    def spoil(profiles):
        error = profiles[4].error.copy()
        error[rows] *= factor
        return [replace(one, error=error) if one is profiles[4] else one for one in profiles]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (in_rows(4.0, slice(0, 30)), "in a quarter of its rows"),
        (in_rows(12.0, slice(20, 21)), "at sequence"),
    ],
)
def test_neither_some_rows_nor_one_hide_behind_the_median(spoil, said):
    """Error that no test of one side sees, because its inputs have it as well, shows against the other side."""
    right, graph = against(MODEL.run())
    wrong = spoil(right)
    found = diagnose_reference(right, wrong, graph)
    assert (found.worse, found.place) == ("target", right[4].key)
    assert said in found.reason
    assert diagnose_reference(wrong, right, graph).worse == "baseline"
    assert diagnose_reference(right, right, graph).worse == "neither"

"""Verdicts on tensors that are constant, empty, not finite, or of a wrong shape, one tap or one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes  # noqa: F401  numpy knows fp8 by its names
import numpy as np
import pytest

from comparator.diagnosis import RowLabels, TapKey, diagnose, profile
from comparator.diagnosis.kernel import Matrices, row_sums
from comparator.diagnosis.measures import normalise
from comparator.diagnosis.tap_rows import Single
from comparator.diagnosis.words import describe
from tests.comparator.diagnosis.simulator import (
    DENSE,
    Kernels,
    Recording,
    at,
    compare,
    profiles_of,
)


def _one_tap(baseline, target, **changes):
    rows = Recording({TapKey("mine"): baseline}, _plain(len(baseline)), "bfloat16")
    return compare(rows, Recording({TapKey("mine"): target}, rows.labels, "bfloat16"), **changes)


def _plain(rows):
    return RowLabels(np.zeros(rows, np.int64), np.arange(rows), np.zeros(rows, bool))


@pytest.mark.parametrize(
    ("baseline", "target", "verdict"),
    [
        (np.ones((1, 8)), np.ones((1, 8)) * 1.5, "differ"),
        (np.ones((1, 8)), np.ones((1, 8)) * 1.001, "agree"),
        (np.zeros((5, 8)), np.zeros((5, 8)), "agree"),
        (np.zeros((5, 8)), np.ones((5, 8)), "differ"),
        (np.full((9, 64), 3.0), np.full((9, 64), 3.0), "agree"),
        (np.full((9, 64), 3.0), np.full((9, 64), 3.3), "differ"),
        (np.full((9, 64), np.nan), np.full((9, 64), np.nan), "agree"),
        (np.full((9, 64), np.inf), np.full((9, 64), -np.inf), "differ"),
        (np.full((9, 64), np.inf), np.full((9, 64), 1.0), "differ"),
        (np.empty((0, 8)), np.empty((0, 8)), "undecided"),
        (np.empty((8, 0)), np.empty((8, 0)), "undecided"),
        (np.ones((9, 1)), np.ones((9, 1)) * 2, "differ"),
        (np.full((9, 64), 1e38), np.full((9, 64), -1e38), "differ"),
        (np.full((9, 64), 1e-40), np.full((9, 64), 1e-40), "agree"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_degenerate_tensors_have_a_defined_verdict(baseline, target, verdict):
    found = _one_tap(baseline.astype(np.float32), target.astype(np.float32))
    assert found.verdict == verdict
    assert describe(found)


def test_wrong_shapes_are_named():
    profiles, graph = profiles_of(DENSE.run(), DENSE.run())
    rows = np.ones((3, 4), np.float32)
    from comparator.diagnosis import SideRows, TapRows

    with pytest.raises(ValueError, match="layer_input layer 0: expected two arrays"):
        profile(TapRows(profiles[0].key, SideRows(rows, rows[:2], _plain(3))), graph.nodes[0])


def test_one_row_with_other_bits_may_be_chance_and_many_rows_not() -> None:
    def last_place(rows: slice) -> Callable[[np.ndarray], np.ndarray]:
        def change(value: np.ndarray) -> np.ndarray:
            value[rows, ::3] *= np.float32(1 + 2**-7)
            return value

        return change

    baseline = DENSE.run(Kernels())
    chance = compare(baseline, DENSE.run(Kernels(), at("mlp_output", 1, last_place(slice(7, 8)))))
    assert chance.verdict == "agree"
    fault = compare(baseline, DENSE.run(Kernels(), at("mlp_output", 1, last_place(slice(None)))))
    assert fault.place == TapKey("mlp_output", 1)


def test_a_fault_in_few_rows_is_not_described_by_the_error_of_the_middle_row() -> None:
    baseline = np.random.default_rng(0).standard_normal((15, 64)).astype(np.float32)
    target = baseline.copy()
    target[12:] *= 1.5
    found = _one_tap(baseline, target)
    assert found.verdict == "differ"
    assert "most of its rows are the same on both sides" in describe(found)
    assert "error 0" not in describe(found)


def test_a_row_that_differs_much_does_not_decide_alone_where_the_others_are_the_same():
    """Behind a flip of experts a row is off by a third; channels, factors and offsets are judged by all rows."""
    middle, added = np.ones((8, 64), np.float32), np.zeros((8, 64), np.float32)
    added[3] = 0.3
    sizes = np.linalg.norm(middle, axis=1)

    def normalised(floor: float = 0.0) -> Single:
        matrices = Matrices(middle, added, parts=True)
        return normalise(matrices, row_sums(matrices), sizes, floor).arrays()[1]

    assert np.linalg.norm(normalised(0.003)) == pytest.approx(2 * 0.003)
    assert np.linalg.norm(normalised()) == pytest.approx(0.3)
    added[:] = 0.02
    assert np.linalg.norm(normalised(0.003)[3]) == pytest.approx(0.02)


@pytest.mark.parametrize("unmeasured", ["layer_input", "attn_output", "pre_mlp_residual"])
def test_what_was_not_measured_hands_on_the_error_before_it(unmeasured: str) -> None:
    """A tap that is there on both sides and could not be measured (another level, a shape that cannot be joined) does
    not make its error that of the tap behind it: not where that adds it up either."""
    baseline, target = DENSE.run(Kernels()), DENSE.run(Kernels(pieces=4, eager=True, fused_norm=True))

    profiles, graph = profiles_of(baseline, target, unmeasured=unmeasured)
    found = diagnose(profiles, graph)
    assert found.verdict == "agree", describe(found)
    scaled = DENSE.run(Kernels(pieces=4, eager=True), at("mlp_output", 1, lambda value: value * np.float32(1.5)))
    profiles, graph = profiles_of(baseline, scaled, unmeasured=unmeasured)
    assert diagnose(profiles, graph).place == TapKey("mlp_output", 1)

"""Rows of images: made by a tower that nothing recorded, and judged apart from the rows of the text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from comparator.diagnosis import Diagnosis, TapKey, describe
from tests.comparator.diagnosis.simulator import DENSE, LENGTHS, Kernels, at, compare

ROWS = sum(LENGTHS)
ENCODED = np.zeros(ROWS, np.bool_)
ENCODED[3:20] = ENCODED[ROWS - 15 : ROWS - 2] = True
INPUT = TapKey("layer_input", 0)
Change = Callable[[np.ndarray], np.ndarray]


def noise(size: float, rows: np.ndarray = ENCODED, seed: int = 0) -> Change:
    def change(value: np.ndarray) -> np.ndarray:
        value = value.copy()
        scale = size * np.sqrt(np.mean(value[rows] ** 2, 1, keepdims=True))
        value[rows] += scale * np.random.default_rng(seed).standard_normal(value[rows].shape).astype(np.float32)
        return value

    return change


def then(*changes: Change) -> Change:
    def change(value: np.ndarray) -> np.ndarray:
        for one in changes:
            value = one(value)
        return value

    return change


def factor(of: float, rows: np.ndarray) -> Change:
    return lambda value: np.where(rows[:, None], value * np.float32(of), value)


def judged(change: Change, *, encoded: np.ndarray | None = ENCODED) -> Diagnosis:
    target = DENSE.run(Kernels(pieces=2, eager=True), at("layer_input", 0, change))
    return compare(DENSE.run(Kernels()), target, encoded=encoded)


@pytest.mark.parametrize("size", [0.004, 0.01, 0.02, 0.04])
def test_what_the_layers_of_a_tower_round_is_no_fault(size: float) -> None:
    found = judged(noise(size))
    assert found.verdict == "agree", describe(found)
    assert judged(noise(size), encoded=None).place == INPUT


def test_images_alone_are_judged_as_well() -> None:
    everything = np.ones(ROWS, np.bool_)
    assert judged(noise(0.01, everything), encoded=everything).verdict == "agree"
    found = judged(then(noise(0.01, everything), factor(1.02, everything)), encoded=everything)
    assert found.place == INPUT


@pytest.mark.parametrize("size", [0.004, 0.01])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(factor(1.02, ENCODED), id="factor of the tower"),
        pytest.param(lambda value: np.where(ENCODED[:, None], np.roll(value, 1, 0), value), id="rows swapped"),
        pytest.param(factor(0.0, np.arange(ROWS) == 7), id="a row is zero"),
        pytest.param(factor(1.5, np.arange(ROWS) == 9), id="a row is larger"),
        pytest.param(noise(0.12), id="far more than rounding"),
    ],
)
def test_a_fault_of_the_tower_is_found_and_said(fault: Change, size: float) -> None:
    found = judged(then(noise(size), fault))
    assert found.place == INPUT
    assert "of the rows of images or sound" in describe(found)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(factor(1.005, ~ENCODED), id="factor of the text"),
        pytest.param(noise(0.01, ~ENCODED, seed=1), id="noise in the text"),
        pytest.param(factor(1.1, np.arange(ROWS) == 1), id="one token"),
    ],
)
def test_rows_of_the_text_are_judged_as_strictly_as_ever(fault: Change) -> None:
    found = judged(then(noise(0.02), fault))
    assert found.place == INPUT
    assert "images" not in describe(found)


@pytest.mark.parametrize("tap", ["attn_output", "mlp_output"])
def test_a_fault_in_a_layer_is_placed_there(tap: str) -> None:
    def fault(name: str, layer: int | None, value: np.ndarray) -> np.ndarray:
        if (name, layer) == ("layer_input", 0):
            return noise(0.01)(value)
        return factor(1.02, ENCODED)(value) if (name, layer) == (tap, 0) else value

    found = compare(DENSE.run(Kernels()), DENSE.run(Kernels(pieces=2), fault), encoded=ENCODED)
    assert found.place == TapKey(tap, 0)


def added_behind(layer: int, size: float, scale: float = 1.0) -> Callable[[str, int | None, np.ndarray], np.ndarray]:
    """What the tower made is added to the residual stream behind a layer, too, with an error of its own."""
    features = np.random.default_rng(5).standard_normal((ROWS, DENSE.run(Kernels()).values[INPUT].shape[1]))
    features = np.where(ENCODED[:, None], features, 0).astype(np.float32)

    def fault(name: str, at_layer: int | None, value: np.ndarray) -> np.ndarray:
        if (name, at_layer) == ("residual", layer):
            return value + np.float32(scale) * (noise(size)(features) if size else features)
        return value

    return fault


def test_what_a_tower_adds_to_later_layers_is_judged_apart_too() -> None:
    baseline = DENSE.run(Kernels(), added_behind(0, 0))
    assert compare(baseline, DENSE.run(Kernels(pieces=2), added_behind(0, 0.01)), encoded=ENCODED).verdict == "agree"
    found = compare(baseline, DENSE.run(Kernels(pieces=2), added_behind(0, 0.01, 1.2)), encoded=ENCODED)
    assert found.place == TapKey("layer_input", 1)
    missing = compare(baseline, DENSE.run(Kernels(pieces=2)), encoded=ENCODED)
    assert missing.place == TapKey("layer_input", 1)

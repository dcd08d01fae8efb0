"""Choices of experts from recorded router logits: ties, flips, and how many flips the margins explain.

A choice is no number: where two logits are closer than the pair's own error, rounding decides. Such a row is a tie,
and what its experts give cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.diagnosis.expert_scores import PLAIN, rounding_of_scores, scores_of, select
from comparator.diagnosis.floors import UNIT_ROUNDOFF
from comparator.diagnosis.kernel import median
from comparator.diagnosis.tap_rows import Float, Integer, Mask, Selection, Single

COMMON_TOP_K = (1, 2, 4, 6, 8, 10, 16)
"""Tried when it is not known how many experts a token gets."""
EXPLAINED_MARGIN = 4.0
"""Largest midpoint margin, in rms errors of the row's logits, at which rounding may flip a choice: each of two logits
moves by half its error, so this is 5.7 standard deviations."""
STANDS_OUT = 4.0
"""A row whose error is so many times what its inputs explain may be one that other experts computed."""


class Choices(Struct, frozen=True, eq=False):
    """The choice of ``top_k`` experts on both sides. Arrays of shape ``(rows,)``."""

    top_k: int
    flipped: Mask
    """The sets of experts differ."""
    tied: Mask
    """Flipped, or the margin on a side is within one rounding of the logit or of its score."""
    margin: Float
    """Midpoint margin between the last chosen and the first other expert, in logits."""
    noise: Float
    """Rms difference of the row's logits."""
    experts: npt.NDArray[np.int16]
    """The chosen experts on the baseline, shape ``(rows, top_k)``, those that the target did not choose as -1."""
    weights_apart: Float
    """Largest difference between both sides' weights of the baseline's experts, normalised over these."""
    load: tuple[Integer, Integer]
    """Rows that chose each expert, on the baseline and on the target; shape ``(experts,)`` each."""

    @property
    def expected(self) -> float:
        """Flips that normal errors of the recorded size would cause at these margins."""
        ratio = np.where(self.noise > 0, self.margin / np.maximum(self.noise, 1e-300), np.inf)
        return float(sum(math.erfc(min(one, 40.0)) for one in ratio))


def choices(baseline: Single, target: Single, top_k: int, dtype: str, selection: Selection = PLAIN) -> Choices:
    """Compare the choices behind two sets of router logits, rows × experts."""
    rows, experts = baseline.shape
    if not 0 < top_k < experts:
        none = np.zeros(rows, np.bool_)
        empty = np.empty((rows, 0), np.int16)
        idle = np.zeros(experts, np.int64)
        return Choices(top_k, none, none, np.full(rows, np.inf), np.zeros(rows), empty, np.zeros(rows), (idle, idle))
    unit = UNIT_ROUNDOFF.get(dtype.removeprefix("torch."), UNIT_ROUNDOFF["float32"])
    sides = ((baseline, selection.baseline_bias), (target, selection.target_bias))
    scores = [scores_of(logits, selection, bias) for logits, bias in sides]
    first, second = (select(one, top_k, selection) for one in scores)
    common = (first.experts[:, :, None] == second.experts[:, None, :]).any(2)
    flipped = ~common.all(1)
    close = np.zeros(rows, np.bool_)
    for (logits, bias), score, found in zip(sides, scores, (first, second), strict=True):
        rounding = rounding_of_scores(logits, score, unit, selection, bias)
        # The logits at the border of the choice: those of the last chosen and the next.
        border = np.argsort(-found.scores, axis=1, kind="stable")[:, top_k - 1 : top_k + 1]
        close |= found.margin <= np.take_along_axis(rounding, border, axis=1).max(1)
    middle = select((scores[0] + scores[1]) / 2, top_k, selection)
    noise = np.sqrt(np.square(scores[1] - scores[0]).mean(1))
    both = np.where(common, first.experts, -1).astype(np.int16)
    weights = [_weights(logits, first.experts, selection) for logits in (baseline, target)]
    apart = np.abs(weights[1] - weights[0]).max(1)
    load = [np.bincount(one.experts.reshape(-1), minlength=experts) for one in (first, second)]
    return Choices(top_k, flipped, flipped | close, middle.margin, noise, both, apart, (load[0], load[1]))


def _weights(logits: Single, experts: npt.NDArray[np.int64], selection: Selection) -> Float:
    """Softmax over the logits of the chosen experts, or their sigmoid scores over the sum. Shape ``(rows, top_k)``."""
    found = np.take_along_axis(logits, experts, axis=1).astype(np.float64)
    weights = (
        1 / (1 + np.exp(-found)) if selection.scoring == "sigmoid" else np.exp(found - found.max(1, keepdims=True))
    )
    return np.asarray(weights / np.maximum(weights.sum(1, keepdims=True), 1e-300), np.float64)


def chosen(logits: Single, top_k: int, selection: Selection = PLAIN, bias: Single | None = None) -> Mask:
    """Which experts are chosen. Shape ``(rows, experts)``."""
    found = select(scores_of(logits, selection, bias), min(top_k, logits.shape[1] - 1), selection)
    mask = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(mask, found.experts, True, axis=1)
    return mask


def standing_out(error: Float) -> Mask:
    """Rows whose error is far beyond the usual one."""
    usual = median(error) if len(error) else 0.0
    return error > 1.5 * STANDS_OUT * usual


def find_top_k(layers: Sequence[tuple[Mask, Sequence[Choices]]]) -> int | None:
    """How many experts a token gets, from the rows that stand out: ties of the right number explain most of them.

    ``layers``: per layer, in order, the rows that stand out and the choices under each candidate. A fault makes rows
    stand out from its layer on, so the candidate wins that explains more than half of what stands out, beyond chance,
    in the most first layers. None when no candidate does in any.
    """
    gained: dict[int, float] = {}
    found, total = None, 0
    for rows, candidates in layers:
        total += int(rows.sum())
        for candidate in candidates:
            share = float(candidate.tied.mean()) if len(rows) else 0.0
            surplus = float((candidate.tied & rows).sum()) - share * int(rows.sum())
            gained[candidate.top_k] = gained.get(candidate.top_k, 0.0) + surplus
        best = max(gained, key=lambda top_k: gained[top_k], default=None)
        if best is not None and total and gained[best] >= 0.5 * total:
            found = best
    return found


class Flips(Struct, frozen=True):
    """The flips of one layer, for the report."""

    layer: int | None
    rows: int
    flipped: int
    expected: float
    largest_margin: float
    """Of a flipped row, in rms errors of its logits."""
    unexplained: int
    """Flipped rows with a margin that the error of their logits does not explain."""
    weights_apart: float = 0.0
    """Largest difference of a weight in rows whose experts agree."""


def count_flips(layer: int | None, found: Choices) -> Flips:
    ratio = np.where(found.noise > 0, found.margin / np.maximum(found.noise, 1e-300), 0.0)[found.flipped]
    return Flips(
        layer,
        len(found.flipped),
        int(found.flipped.sum()),
        found.expected,
        float(ratio.max(initial=0.0)),
        int((ratio > EXPLAINED_MARGIN).sum()),
        float(found.weights_apart[~found.flipped].max(initial=0.0)),
    )

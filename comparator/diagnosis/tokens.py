"""Sampled tokens: which token each side's logits choose, and whether a text that parts does so at a tie.

A token is no number. Where two logits are closer than the error of the logits, rounding decides which is sampled, and
what follows is another text on each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from comparator.diagnosis.floors import unit_roundoff
from comparator.diagnosis.routing import EXPLAINED_MARGIN
from comparator.diagnosis.tap_rows import Float, Integer, Mask, RowLabels, Single

Cause = Literal["tie", "fault", "unknown"]


class Parting(Struct, frozen=True):
    """The first token at which a sequence of one side differs from the same sequence of the other."""

    sequence: int
    position: int
    """Of the token that differs; the logits of the position before chose it."""
    baseline: int
    """Token id."""
    target: int


class TokenChoices(Struct, frozen=True, eq=False):
    """What the logits of each row choose. Arrays of shape ``(rows,)``."""

    baseline: Integer
    """Token with the largest logit."""
    target: Integer
    margin: Float
    """Distance of the logits of both choices, at the midpoint of both sides; 0 where the choices agree."""
    noise: Float
    """Error of the row's logits: their rms difference, at least one rounding of the largest."""
    baseline_log_probability: Float
    """Of the baseline's choice, on the baseline."""
    target_log_probability: Float
    """Of the baseline's choice, on the target."""
    divergence: Float
    """KL divergence of the target's distribution from the baseline's, in nats."""

    @property
    def flipped(self) -> Mask:
        return np.asarray(self.baseline != self.target, np.bool_)

    @property
    def ratio(self) -> Float:
        """Margin of a flipped choice in errors of its logits; 0 where the choices agree."""
        return self.margin / np.maximum(self.noise, 1e-300)


def choose_tokens(baseline: Single, target: Single, dtype: str) -> TokenChoices:
    """Compare what two sets of logits, rows × vocabulary, choose. NaN and infinities must be gone."""
    rows = np.arange(len(baseline))
    first, second = baseline.argmax(1), target.argmax(1)
    middle = [baseline[rows, token].astype(np.float64) + target[rows, token] for token in (first, second)]
    margin = np.abs(middle[0] - middle[1]) / 2
    largest = np.maximum(np.abs(baseline[rows, first]), np.abs(target[rows, second]))
    difference = target - baseline
    error = np.sqrt(np.einsum("ij,ij->i", difference, difference, dtype=np.float64) / max(baseline.shape[1], 1))
    weights, largest_baseline, normaliser = _softmax(baseline)
    _, largest_target, other_normaliser = _softmax(target)
    expected = np.einsum("ij,ij->i", weights, difference, dtype=np.float64) / np.exp(normaliser)
    apart = (largest_target.astype(np.float64) + other_normaliser) - (largest_baseline + normaliser) - expected
    return TokenChoices(
        first.astype(np.int64),
        second.astype(np.int64),
        margin,
        np.maximum(error, unit_roundoff(dtype) * largest.astype(np.float64)),
        np.asarray(baseline[rows, first] - largest_baseline - normaliser, np.float64),
        np.asarray(target[rows, first] - largest_target - other_normaliser, np.float64),
        np.maximum(apart, 0),
    )


def joined(parts: Sequence[TokenChoices]) -> TokenChoices:
    """The choices of rows that were looked at a few at a time."""
    names = TokenChoices.__struct_fields__
    return TokenChoices(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _softmax(logits: Single) -> tuple[Single, Single, Float]:
    """Weights that are not normalised, the largest logit of each row, and the logarithm of the sum of its weights."""
    largest = logits.max(1)
    weights = np.exp(logits - largest[:, None])
    return weights, largest, np.log(weights.sum(1, dtype=np.float64))


class ChosenTokens(Struct, frozen=True):
    """What the logits of a pair say about sampling, for the report."""

    rows: int
    flipped: int
    """Rows whose largest logit is another token's."""
    log_probability_apart: float
    """Mean difference of the log probability of the baseline's choice."""
    largest_apart: float
    where: str
    """The row of the largest difference."""
    divergence: float
    """Mean KL divergence of the target from the baseline, in nats a token."""


def summarise(found: TokenChoices, labels: RowLabels) -> ChosenTokens:
    """Numbers over all rows of the logits."""
    apart = np.abs(found.target_log_probability - found.baseline_log_probability)
    worst = int(np.argmax(apart))
    return ChosenTokens(
        len(apart),
        int(found.flipped.sum()),
        float(apart.mean()),
        float(apart[worst]),
        labels.describe(worst),
        float(found.divergence.mean()),
    )


class PartedText(Struct, frozen=True):
    """A sequence whose text parts, and why."""

    parting: Parting
    cause: Cause
    """``unknown``: its logits were not recorded, or chose neither token (sampling at random)."""
    margin: float | None = None
    """Distance of both tokens' logits, in errors of the logits."""
    log_probabilities: tuple[float, float] | None = None
    """Of the baseline's token, on the baseline and on the target; None where its logits were not recorded."""


def explain(
    partings: Sequence[Parting], found: TokenChoices | None, labels: RowLabels | None
) -> tuple[PartedText, ...]:
    """Why each text parts. ``found`` and ``labels`` are of the logits; None where they were not recorded."""
    return tuple(_explain(parting, found, labels) for parting in partings)


def _explain(parting: Parting, found: TokenChoices | None, labels: RowLabels | None) -> PartedText:
    if found is None or labels is None or not labels.known:
        return PartedText(parting, "unknown")
    rows = np.flatnonzero((labels.sequence == parting.sequence) & (labels.position == parting.position - 1))
    if not rows.size:
        return PartedText(parting, "unknown")
    row = int(rows[0])
    if (int(found.baseline[row]), int(found.target[row])) != (parting.baseline, parting.target):
        return PartedText(parting, "unknown")
    margin = float(found.ratio[row])
    probabilities = (float(found.baseline_log_probability[row]), float(found.target_log_probability[row]))
    return PartedText(parting, "tie" if margin <= EXPLAINED_MARGIN else "fault", margin, probabilities)

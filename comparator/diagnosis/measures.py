"""Numbers of two matrices of rows × channels: errors of rows, common factors and offsets, shares of channels."""

from __future__ import annotations

import functools
import math
import random
from functools import cached_property

import numpy as np
from msgspec import Struct

from comparator.diagnosis.kernel import (
    TINY,
    ChannelSums,
    Matrices,
    PartSums,
    RowSums,
    arrays,
    channel_sums,
    channel_sums_of_parts,
    median,
    relative,
    standing_out,
)
from comparator.diagnosis.tap_rows import Float, Integer, Mask, Single
from tensortap.distinct import distinct

MOST_ROWS = 768
"""Rows that a scale is estimated from, evenly spaced: the standard error takes the rows' Gram matrix."""
PROBES = 16
"""Random vectors by which the size of a product of two matrices is estimated."""
WORTH_PROBES = 128
"""Rows and channels from which that saves most of the time."""
FEW_ROWS, SAFELY = 32, 4.0
"""So many rows are asked first whether a factor is significant, so many times: they show it less clearly than all."""
MANY_TIMES = 16.0
"""A standard error of two estimates by probes is 16 times too small once in 10^9 times at most: each is near a
chi-squared variable of 16 degrees over 16, or nearer to what it estimates."""
OUTLIER = 2.0
"""A channel beyond so many medians is shrunk to that size, so that few massive channels do not decide alone."""


class Estimate(Struct, frozen=True):
    """An estimated factor less one (or an offset), with its standard error."""

    value: float = 0.0
    error: float = 0.0

    @property
    def z(self) -> float:
        return abs(self.value) / self.error if self.error > 0 else (np.inf if self.value else 0.0)

    def minus(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, float(np.hypot(self.error, other.error)))


NOTHING = Estimate()


def channel_weights(energy: Float) -> Single | None:
    """Per channel the factor that shrinks outlier channels: min(1, 2 · median / rms); None where all are 1.

    ``energy``: sum of the squares of both sides. Shapes ``(channels,)``.
    """
    size = np.sqrt(energy)
    limit = OUTLIER * median(size) if len(size) else 0.0
    if limit <= 0 or not (size > limit).any():
        return None
    return np.minimum(1.0, limit / np.maximum(size, TINY)).astype(np.float32)


class Difference(Struct, frozen=True, eq=False, dict=True):
    """Rows of two matrices, normalised: the midpoint of both sides and what was added to it are multiplied by a factor,
    which is the row's weight over its size.

    Rows with a large error weigh less (min(1, 2 · median error / error)): otherwise one flipped row decides.
    """

    matrices: Matrices
    sums: RowSums
    """Of all rows of the matrices, without factors."""
    chosen: Integer
    """Numbers of the rows."""
    factors: Single
    """Of the rows that are chosen, as ``error``."""
    error: Float
    """Relative error of each row, unweighted."""
    parts: tuple[PartSums, ...] = ()
    """What is known of the channels of these matrices, of rows that weigh as much as others."""

    @property
    def rows(self) -> int:
        return len(self.chosen)

    @property
    def channels(self) -> int:
        return self.matrices.shape[1]

    def take(self, rows: Mask | Integer) -> Difference:
        return Difference(self.matrices, self.sums, self.chosen[rows], self.factors[rows], self.error[rows])

    @cached_property
    def row_energies(self) -> Float:
        """Σm², Σma and Σa² of each row, shape ``(3, rows)``."""
        square = np.square(self.factors, dtype=np.float64)
        sums, chosen, found = self.sums, self.chosen, np.empty((3, len(square)))
        for one, to in zip((sums.middle, sums.product, sums.added), found, strict=True):
            np.multiply(square, _of(one, chosen), out=to)
        return found

    @cached_property
    def channel_sums(self) -> ChannelSums:
        if not self.parts:
            return channel_sums(self.matrices, self.chosen, self.factors)
        plain = _factors(self.sums.sizes)
        return channel_sums_of_parts(self.matrices, self.chosen, self.factors, plain, self.parts)

    def arrays(self) -> tuple[Single, Single]:
        """Midpoint and what was added, of shape ``(rows, channels)``."""
        return arrays(self.matrices, self.chosen, self.factors)


def normalise(
    matrices: Matrices,
    sums: RowSums,
    sizes: Float,
    floor: float = 0.0,
    kept: Mask | None = None,
    parts: tuple[PartSums, ...] = (),
    error: Float | None = None,
) -> Difference:
    """Rows over their sizes, weighted. Where most rows do not differ at all, ``floor`` is the usual error: the few
    that do (those behind a flip of experts, for example) would decide alone otherwise. ``kept``: the rows that count;
    ``error``: of each row what was added over its size, where that is known.
    """
    chosen = np.arange(len(sizes), dtype=np.int64) if kept is None else np.flatnonzero(kept)
    sizes = _of(sizes, chosen)
    error = relative(_of(sums.added, chosen), sizes) if error is None else _of(error, chosen)
    present = _of(error, np.flatnonzero(sizes > 0))
    usual = median(present) if len(present) else 0.0
    usual = usual or floor
    weight = np.minimum(1.0, 2 * usual / np.maximum(error, TINY)) if usual > 0 else np.ones(len(error))
    return Difference(matrices, sums, chosen, _factors(sizes, weight), error, parts)


def _of(values: Float, rows: Integer) -> Float:
    """Those of some rows, whose numbers are ascending; itself where that is all of them."""
    return values if len(rows) == len(values) else values[rows]


def _factors(sizes: Float, weight: Float | float = 1.0) -> Single:
    return np.where(sizes > 0, weight / np.maximum(sizes, TINY), 0.0).astype(np.float32)


class Irrelevance(Struct, frozen=True):
    """When the significance of a factor decides nothing: a test is as strong as the weaker of size and significance,
    and only the strongest test of a tap is told."""

    strength: float = 0.0
    """What another test of the tap reaches for certain."""
    size: float = math.inf
    """Half the least threshold of the size: of two factors that are told from one another, each may be half."""
    significance: float = math.inf
    """More than any test asks for."""

    def covers(self, value: float) -> bool:
        """Of one factor, from which another may be taken."""
        return abs(value) < self.strength * self.size and abs(value) < self.size

    def covers_change(self, value: float) -> bool:
        """Of a factor less another."""
        return self.covers(value / 2)

    def is_clear(self, error: float, times: float = MANY_TIMES) -> bool:
        """Of a standard error: whether any factor that is large enough for a fault is significant, many times over. The
        size decides then, and so it does behind the tap, where errors add up and this one is too small to count."""
        return error * times * self.significance < self.size


RELEVANT = Irrelevance()
NEVER_RELEVANT = Irrelevance(math.inf)


def scale(difference: Difference, irrelevant: Irrelevance = RELEVANT) -> Estimate:
    """The factor common to all elements, less one: least squares against the midpoint.

    The standard error allows for rows and channels that are correlated (errors behind an attention share the early
    tokens): SE = ‖MᵀR‖ · ‖MRᵀ‖ / (‖M‖ · ‖R‖ · ‖M‖²) with the residual R and Frobenius norms. It takes the rows' Gram
    matrix. Where the significance is ``irrelevant``, that work is saved: it is that of elements that are not
    correlated; and where it is clear beyond doubt the norms are estimated.
    """
    return _Scale.of(difference).estimate(irrelevant)


def change_of_scale(
    difference: Difference, of: Integer, others: Integer, irrelevant: Irrelevance = RELEVANT
) -> Estimate:
    """The factor of some rows less that of others, each a sample (``sample_of``) of those of the difference. Both are
    often large where all rows have one, and their difference decides: where its significance is ``irrelevant``, that of
    both is."""
    first, second = _Scale.of(difference, of), _Scale.of(difference, others)
    if irrelevant.covers_change(first.plain.value - second.plain.value):
        irrelevant = NEVER_RELEVANT
    return first.estimate(irrelevant).minus(second.estimate(irrelevant))


class _Scale(Struct, frozen=True, eq=False):
    """A factor from the sums of rows, and the rows, from which its standard error would be taken."""

    difference: Difference
    rows: Integer
    """Their numbers among those of the difference."""
    plain: Estimate
    """With the error of elements that are not correlated."""
    is_exact: bool
    """There is no factor, or it explains all."""

    @staticmethod
    def of(difference: Difference, rows: Integer | None = None) -> _Scale:
        if rows is None:
            rows = _sampled(difference.rows)
        energies = difference.row_energies
        if len(rows) < difference.rows:
            energies = energies.take(rows, 1)
        middle, product, added = energies.sum(1).tolist()
        found = factor_of(middle, product, added)
        if found is None or found.error:
            return _Scale(difference, rows, found or NOTHING, True)
        elements = len(rows) * difference.channels
        return _Scale(difference, rows, uncorrelated(found.value, middle, product, added, elements), False)

    def estimate(self, irrelevant: Irrelevance) -> Estimate:
        value = self.plain.value
        if self.is_exact or irrelevant.covers(value):
            return self.plain
        difference, count = self.difference, len(self.rows)
        if count > FEW_ROWS and irrelevant.is_clear(self.plain.error, SAFELY):
            few = with_error(value, *difference.take(self.rows[_sampled(count, FEW_ROWS)]).arrays())
            # Without residuals in the few the error says nothing of the others.
            if few.error > 1e-9 * abs(value) and irrelevant.is_clear(few.error, SAFELY):
                return few
        rows = difference if count == difference.rows else difference.take(self.rows)
        return with_error(value, *rows.arrays(), irrelevant)


def factor_of(middle: float, product: float, added: float) -> Estimate | None:
    """The factor less one from Σm², Σma and Σa², with an error where it explains all; None where there is none."""
    if middle <= 0 or added <= 0:
        return None
    value = product / middle
    if added - value * product <= 1e-12 * middle * value * value:
        return Estimate(value, 1e-9 * abs(value))
    return Estimate(value)


def uncorrelated(value: float, middle: float, product: float, added: float, elements: int) -> Estimate:
    """A factor less one with the standard error that it has where elements differ by chance, each for itself."""
    return Estimate(value, math.sqrt(max(added - value * product, 0.0) / (middle * elements)))


def with_error(value: float, middle: Single, added: Single, irrelevant: Irrelevance = RELEVANT) -> Estimate:
    """A factor less one with its standard error; an array of shape ``(rows, channels)`` each."""
    energy = float(np.vdot(middle, middle))
    rest = middle * np.float32(-value)
    rest += added
    left = float(np.vdot(rest, rest))
    if left <= 1e-12 * energy * value * value:
        return Estimate(value, 1e-9 * abs(value))
    if min(middle.shape) >= WORTH_PROBES and irrelevant.is_clear(math.sqrt(left / energy / middle.size)):
        error = _standard_error(energy, left, *_probed_products(middle, rest))
        if irrelevant.is_clear(error):
            return Estimate(value, error)
    return Estimate(value, _standard_error(energy, left, *_products(middle, rest)))


def _standard_error(energy: float, left: float, over_channels: float, over_rows: float) -> float:
    return math.sqrt(max(over_channels, 0.0) * max(over_rows, 0.0) / (energy * left)) / energy


def _products(middle: Single, rest: Single) -> tuple[float, float]:
    """The squares of ‖MᵀR‖ and of ‖MRᵀ‖."""
    rows, channels = middle.shape
    if rows <= channels:
        over_channels = float(np.vdot(middle @ middle.T, rest @ rest.T))
        return over_channels, float(np.square(middle @ rest.T, dtype=np.float64).sum())
    over_channels = float(np.square(middle.T @ rest, dtype=np.float64).sum())
    return over_channels, float(np.vdot(middle.T @ middle, rest.T @ rest))


def _probed_products(middle: Single, rest: Single) -> tuple[float, float]:
    """Estimates of the same, in a tenth of the time: of a matrix A and a random vector g whose elements are independent
    and of variance 1, ‖Ag‖² is ‖A‖² on average (Hutchinson, 1990)."""
    rows, channels = middle.shape
    over_channels = middle.T @ (rest @ _probes(channels))
    over_rows = middle @ (rest.T @ _probes(rows))
    return float(np.vdot(over_channels, over_channels)) / PROBES, float(np.vdot(over_rows, over_rows)) / PROBES


@functools.lru_cache(16)
def _probes(length: int) -> Single:
    """The same each time, of shape ``(length, PROBES)``: uniform, of mean 0 and variance 1. Not to be written to."""
    noise = np.frombuffer(random.Random(length).randbytes(length * PROBES), np.int8).reshape(length, PROBES)
    return (noise + np.float32(0.5)) / np.float32(math.sqrt((256**2 - 1) / 12))


def sampled_rows(difference: Difference) -> Difference:
    """The rows that a scale is estimated from."""
    return difference if difference.rows <= MOST_ROWS else difference.take(_sampled(difference.rows))


def sample_of(rows: Mask) -> Integer:
    """Numbers of the rows of a mask that a scale is estimated from."""
    found = np.flatnonzero(rows)
    return found[_sampled(len(found))] if len(found) > MOST_ROWS else found


@functools.lru_cache(256)
def _sampled(rows: int, most: int = MOST_ROWS) -> Integer:
    """Numbers of at most so many rows, evenly spaced. Not to be written to."""
    if rows <= most:
        return np.arange(rows)
    return distinct(np.linspace(0, rows - 1, most).astype(np.int64))


def offset(difference: Difference) -> Estimate:
    """A constant added to all elements, relative to the rms of an element.

    The standard error is the larger of those of the rows' and of the channels' means.
    """
    rows, channels = difference.rows, difference.channels
    if rows < 2 or channels < 2:
        return NOTHING
    root = np.sqrt(channels)
    by_row = difference.factors * _of(difference.sums.total, difference.chosen) / channels
    by_channel = difference.channel_sums.total / rows
    error = max(by_row.std(ddof=1) / np.sqrt(rows), by_channel.std(ddof=1) / np.sqrt(channels))
    return Estimate(float(by_row.mean() * root), float(error * root))


class ChannelNumbers(Struct, frozen=True):
    """The channel whose error stands out most, and the one that was scaled most clearly."""

    ratio: float
    """Root of its error's energy over what is usual for a channel of its size."""
    channel: int
    scaled_ratio: float
    """The same for the part of the error that a factor explains."""
    scale: Estimate
    scaled_channel: int


def channels(difference: Difference, floor: float, z: float) -> ChannelNumbers | None:
    """Compare each channel's error with the usual one; None with fewer than 32 channels or 12 rows.

    Usual is the larger of the median energy of an error and the channel's own energy times the median share of error.
    ``floor`` (relative error of a row) keeps a channel from standing out over channels that are bit-identical; ``z`` is
    the significance that a channel's factor has to have.
    """
    rows, count = difference.rows, difference.channels
    if count < 32 or rows < 12:
        return None
    sums = difference.channel_sums
    energy, size, product = sums.added, sums.middle, sums.product
    least = floor**2 * float(size.mean())
    ratio, at, scaled, factor, worst, error = standing_out(energy, size, product, rows, floor**2, least, z, TINY)
    return ChannelNumbers(ratio, at, scaled, Estimate(factor, error), worst)

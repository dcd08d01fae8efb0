"""Numbers of two matrices of rows × channels: errors of rows, common factors and offsets, shares of channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from comparator.diagnosis.rows import Float, Integer, Mask, Single

MOST_ROWS = 768
"""Rows that a scale is estimated from, evenly spaced: the standard error takes the rows' Gram matrix."""
OUTLIER = 2.0
"""A channel beyond so many medians is shrunk to that size, so that few massive channels do not decide alone."""
TINY = 1e-300


@dataclass(frozen=True)
class Estimate:
    """An estimated factor less one (or an offset), with its standard error."""

    value: float = 0.0
    error: float = 0.0

    @property
    def z(self) -> float:
        return abs(self.value) / self.error if self.error > 0 else (np.inf if self.value else 0.0)

    def minus(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, float(np.hypot(self.error, other.error)))


NOTHING = Estimate()


def channel_weights(baseline: Single, target: Single) -> Float:
    """Per channel the factor that shrinks outlier channels: min(1, 2 · median / rms). Shape ``(channels,)``."""
    energy = np.einsum("ij,ij->j", baseline, baseline, dtype=np.float64)
    energy += np.einsum("ij,ij->j", target, target, dtype=np.float64)
    size = np.sqrt(energy)
    limit = OUTLIER * float(np.median(size)) if len(size) else 0.0
    if limit <= 0:
        return np.ones(len(size))
    return np.asarray(np.minimum(1.0, limit / np.maximum(size, TINY)), np.float64)


def midpoint(baseline: Single, target: Single) -> Single:
    # In place, as elsewhere here: the memory of a further large array costs more than the arithmetic.
    middle = np.asarray(baseline + target, np.float32)
    middle *= np.float32(0.5)
    return middle


def row_sizes(baseline: Single, target: Single) -> Float:
    """Root of the mean of both sides' squared norms. Shape ``(rows,)``."""
    energy = np.einsum("ij,ij->i", baseline, baseline, dtype=np.float64)
    energy += np.einsum("ij,ij->i", target, target, dtype=np.float64)
    return np.asarray(np.sqrt(energy / 2), np.float64)


def relative(part: Single, sizes: Float) -> Float:
    """Norm of each row of ``part`` over ``sizes``; 0 where both are 0. Shape ``(rows,)``."""
    norm = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
    return np.asarray(np.where(norm > 0, norm / np.maximum(sizes, TINY), 0.0), np.float64)


@dataclass(frozen=True, eq=False)
class Difference:
    """Normalised rows: the midpoint of both sides and what was added to it, each row over its size and weighted.

    Rows with a large error weigh less (min(1, 2 · median error / error)): otherwise one flipped row decides.
    """

    middle: Single
    added: Single
    error: Float
    """Relative error of each row, unweighted."""

    @property
    def rows(self) -> int:
        return len(self.error)

    def take(self, rows: Mask | Integer) -> Difference:
        return Difference(self.middle[rows], self.added[rows], self.error[rows])


def normalise(middle: Single, added: Single, sizes: Float, floor: float = 0.0) -> Difference:
    """Rows over their sizes, weighted. Where most rows do not differ at all, ``floor`` is the usual error: the few
    that do (those behind a flip of experts, for example) would decide alone otherwise.
    """
    error = relative(added, sizes)
    return _weighted(middle, added, sizes, error, _usual(error, sizes) or floor)


def normalise_sample(baseline: Single, target: Single) -> Difference:
    """The rows that ``scale`` looks at, as ``normalise`` leaves them."""
    sizes, added = row_sizes(baseline, target), target - baseline
    error = relative(added, sizes)
    rows = _sampled(len(sizes))
    middle = midpoint(baseline[rows], target[rows])
    return _weighted(middle, added[rows], sizes[rows], error[rows], _usual(error, sizes))


def _usual(error: Float, sizes: Float) -> float:
    present = sizes > 0
    return float(np.median(error[present])) if present.any() else 0.0


def _weighted(middle: Single, added: Single, sizes: Float, error: Float, usual: float) -> Difference:
    present = sizes > 0
    weight = np.minimum(1.0, 2 * usual / np.maximum(error, TINY)) if usual > 0 else np.ones(len(error))
    factor = np.where(present, weight / np.maximum(sizes, TINY), 0.0).astype(np.float32)[:, None]
    return Difference(middle * factor, added * factor, error)


def scale(difference: Difference, of: Mask | None = None) -> Estimate:
    """The factor common to all elements (of some rows), less one: least squares against the midpoint.

    The standard error allows for rows and channels that are correlated (errors behind an attention share the early
    tokens): SE = ‖MᵀR‖ · ‖MRᵀ‖ / (‖M‖ · ‖R‖ · ‖M‖²) with the residual R and Frobenius norms.
    """
    if of is not None:
        chosen = np.flatnonzero(of)
        difference = difference.take(chosen[_sampled(len(chosen))])
    difference = _sample(difference)
    middle, added = difference.middle, difference.added
    energy = float(np.vdot(middle, middle))
    if energy <= 0 or not added.any():
        return NOTHING
    value = float(np.vdot(middle, added)) / energy
    rest = added - np.float32(value) * middle
    left = float(np.vdot(rest, rest))
    if left <= 1e-12 * energy * value * value:
        return Estimate(value, 1e-9 * abs(value))
    rows, channels = middle.shape
    if rows <= channels:
        over_channels = float(np.vdot(middle @ middle.T, rest @ rest.T))
        over_rows = float(np.square(middle @ rest.T, dtype=np.float64).sum())
    else:
        over_channels = float(np.square(middle.T @ rest, dtype=np.float64).sum())
        over_rows = float(np.vdot(middle.T @ middle, rest.T @ rest))
    error = np.sqrt(max(over_channels, 0.0) * max(over_rows, 0.0) / (energy * left)) / energy
    return Estimate(value, float(error))


def _sample(difference: Difference) -> Difference:
    """The rows that a scale is estimated from."""
    return difference if difference.rows <= MOST_ROWS else difference.take(_sampled(difference.rows))


def _sampled(rows: int) -> Integer:
    if rows <= MOST_ROWS:
        return np.arange(rows)
    return np.unique(np.linspace(0, rows - 1, MOST_ROWS).astype(np.int64))


def offset(difference: Difference) -> Estimate:
    """A constant added to all elements, relative to the rms of an element.

    The standard error is the larger of those of the rows' and of the channels' means.
    """
    added = difference.added
    rows, channels = added.shape
    if rows < 2 or channels < 2:
        return NOTHING
    root = np.sqrt(channels)
    by_row, by_channel = added.mean(1, dtype=np.float64), added.mean(0, dtype=np.float64)
    error = max(by_row.std(ddof=1) / np.sqrt(rows), by_channel.std(ddof=1) / np.sqrt(channels))
    return Estimate(float(by_row.mean() * root), float(error * root))


def alignment(middle: Single, added: Single) -> Float:
    """|cos| between each row's midpoint and what was added to it: 1 for a row that was scaled. Shape ``(rows,)``."""
    product = np.abs(np.einsum("ij,ij->i", middle, added, dtype=np.float64))
    norms = np.sqrt(
        np.einsum("ij,ij->i", middle, middle, dtype=np.float64) * np.einsum("ij,ij->i", added, added, dtype=np.float64)
    )
    return np.where(norms > 0, product / np.maximum(norms, TINY), 0.0)


@dataclass(frozen=True)
class ChannelNumbers:
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
    middle, added = difference.middle, difference.added
    rows, count = added.shape
    if count < 32 or rows < 12:
        return None
    energy = np.einsum("ij,ij->j", added, added, dtype=np.float64)
    size = np.einsum("ij,ij->j", middle, middle, dtype=np.float64)
    share = max(float(np.median(energy / np.maximum(size, TINY))), floor**2)
    least = max(float(np.median(energy)), floor**2 * float(size.mean()))
    usual = np.maximum(np.maximum(least, size * share), TINY)
    ratio = np.sqrt(energy / usual)
    product = np.einsum("ij,ij->j", middle, added, dtype=np.float64)
    factor = product / np.maximum(size, TINY)
    left = np.maximum(energy - factor * product, 0.0)
    error = np.sqrt(left / rows / np.maximum(size, TINY))
    scaled = np.abs(factor) * np.sqrt(size / usual)
    clear = np.abs(factor) / np.maximum(error, 1e-9)
    at, worst = int(np.argmax(ratio)), int(np.argmax(np.minimum(clear / z, scaled)))
    estimate = Estimate(float(factor[worst]), float(error[worst]))
    return ChannelNumbers(float(ratio[at]), at, float(scaled[worst]), estimate, worst)


@dataclass(frozen=True)
class BlockNumbers:
    """Heads, or blocks of the size of common heads: the one that stands out."""

    size: int
    ratio: float
    """Relative error of the block over that of the median block."""
    block: int
    scale: Estimate
    """Factor of a block less that of all channels."""
    scaled_block: int
    errors: tuple[float, ...] = ()
    """Of pieces that ranks hold: the relative error of each."""


def blocks(difference: Difference, size: int, floor: float) -> BlockNumbers | None:
    """Compare blocks of ``size`` channels; None with fewer than 3 of them or fewer than 6 rows."""
    rows, count = difference.added.shape
    number = count // size
    if number < 3 or count % size or rows < 6:
        return None
    shape = (rows, number, size)
    added, middle = difference.added.reshape(shape), difference.middle.reshape(shape)
    energy = np.einsum("ijk,ijk->j", added, added, dtype=np.float64)
    size_ = np.einsum("ijk,ijk->j", middle, middle, dtype=np.float64)
    errors = np.sqrt(energy / np.maximum(size_, TINY))
    ratio = errors / max(float(np.median(errors)), floor)
    sample = _sample(difference)
    whole = scale(sample)
    found = [scale(_channels_of(sample, slice(at * size, (at + 1) * size))).minus(whole) for at in range(number)]
    usual = max(float(np.median(difference.error)), floor)
    clearest = max(range(number), key=lambda at: min(found[at].z / 10, abs(found[at].value) / usual))
    at = int(np.argmax(ratio))
    return BlockNumbers(size, float(ratio[at]), at, found[clearest], clearest)


def shards(difference: Difference, count: int, floor: float) -> BlockNumbers | None:
    """Compare ``count`` equal parts of the channels, as ranks hold them, each with the others together.

    None with fewer than 2 parts or 6 rows, and where channels cannot be divided so.
    """
    rows, channels = difference.added.shape
    if count < 2 or channels % count or channels == count or rows < 6:
        return None
    shape = (rows, count, channels // count)
    added, middle = difference.added.reshape(shape), difference.middle.reshape(shape)
    errors = np.sqrt(
        np.einsum("ijk,ijk->j", added, added, dtype=np.float64)
        / np.maximum(np.einsum("ijk,ijk->j", middle, middle, dtype=np.float64), TINY)
    )
    ratios, changes = [], []
    sample, holder = _sample(difference), np.repeat(np.arange(count), channels // count)
    for at in range(count):
        ratios.append(errors[at] / max(float(np.median(np.delete(errors, at))), floor))
        part, rest = (_channels_of(sample, mask) for mask in (holder == at, holder != at))
        changes.append(scale(part).minus(scale(rest)))
    usual = max(float(np.median(difference.error)), floor)
    clearest = max(range(count), key=lambda at: min(changes[at].z / 10, abs(changes[at].value) / usual))
    worst = int(np.argmax(ratios))
    return BlockNumbers(
        channels // count, float(ratios[worst]), worst, changes[clearest], clearest, tuple(errors.tolist())
    )


def _channels_of(difference: Difference, chosen: slice | Mask) -> Difference:
    middle, added = (np.ascontiguousarray(values[:, chosen]) for values in (difference.middle, difference.added))
    return Difference(middle, added, difference.error)

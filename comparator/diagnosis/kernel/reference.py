"""The sums in numpy: what the compiled ones are held against, and what is used where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Integer = npt.NDArray[np.int64]

PIECE = 1 << 20
"""Elements that are looked at together."""
CACHED = 1 << 16
"""Elements that stay in the processor's cache from one step to the next."""
TINY = 1e-300
LONG = 1024
"""Numbers, from which to find three of their order at once takes longer than to look through those of each half."""


class Matrices(Struct, frozen=True, eq=False):
    """Two matrices of shape ``(rows, channels)``, of any dtype that float32 holds.

    Places where either is not finite count as 0 on both.
    """

    first: Array
    second: Array
    weights: Single | None = None
    """Per channel what both are multiplied by; None for 1."""
    parts: bool = False
    """They are a midpoint and what was added to it, in float32, not a baseline and a target."""
    finite: bool = False
    """All elements are known to be finite."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, channels = self.first.shape
        return rows, channels

    def rows(self, some: slice) -> Matrices:
        """Some of the rows; itself where that is all of them."""
        if some == slice(0, len(self.first)):
            return self
        return replace(self, first=self.first[some], second=self.second[some])


def sum_rows(matrices: Matrices, sums: Float, counts: Integer | None, energy: Float | None) -> None:
    """Per row, of shape ``(rows, 5)``: Σx², Σy², Σa², Σ(x + y)a and Σa with a = y - x (of parts Σm², 0, Σa², Σma, Σa).

    ``counts``, of shape ``(rows, 4)``: elements that differ, that are not finite in the baseline, in the target, and of
    these such as do not agree. ``energy``, of shape ``(channels,)``: Σ(x² + y²). All are added to.
    """
    with np.errstate(all="ignore"):
        for rows in _pieces(matrices):
            first, second = _sides(matrices, rows, None if counts is None else counts[rows])
            left, right = first.astype(np.float64), second.astype(np.float64)
            added = right if matrices.parts else (second - first).astype(np.float64)
            sums[rows, 0] += np.einsum("ij,ij->i", left, left)
            if not matrices.parts:
                sums[rows, 1] += np.einsum("ij,ij->i", right, right)
            sums[rows, 2] += np.einsum("ij,ij->i", added, added)
            sums[rows, 3] += np.einsum("ij,ij->i", left if matrices.parts else left + right, added)
            sums[rows, 4] += added.sum(1)
            if energy is not None:
                energy += np.einsum("ij,ij->j", left, left) + np.einsum("ij,ij->j", right, right)


def sum_channels(matrices: Matrices, chosen: Integer, factors: Single, sums: Float) -> None:
    """Per channel, of shape ``(4, channels)``, over the rows ``chosen``: Σa², Σm², Σma and Σa with the midpoint
    m = (x + y) / 2 and a = y - x, each row times its factor. ``sums`` is added to."""
    with np.errstate(all="ignore"):
        for piece in _pieces(matrices, len(chosen)):
            middle, added = midpoint_and_added(matrices, chosen[piece])
            factor = factors[piece, None]
            middle, added = (middle * factor).astype(np.float64), (added * factor).astype(np.float64)
            sums[0] += np.einsum("ij,ij->j", added, added)
            sums[1] += np.einsum("ij,ij->j", middle, middle)
            sums[2] += np.einsum("ij,ij->j", middle, added)
            sums[3] += added.sum(0)


def midpoint_and_added(matrices: Matrices, rows: Integer | slice) -> tuple[Single, Single]:
    """Midpoints and differences of some rows, in float32."""
    first, second = sides(matrices, rows)
    if matrices.parts:
        return first, second
    with np.errstate(all="ignore"):
        middle = first + second
        middle *= np.float32(0.5)
        return middle, second - first


def arrays(matrices: Matrices, rows: Integer, factors: Single, found: Single) -> None:
    """Midpoints and differences of rows, each times its factor; ``found`` has shape ``(2, rows, channels)``."""
    together = max(1, CACHED // max(1, matrices.shape[1]))
    with np.errstate(all="ignore"):
        for first in range(0, len(rows), together):
            some = slice(first, first + together)
            for side, out in zip(midpoint_and_added(matrices, rows[some]), found, strict=True):
                np.multiply(side, factors[some, None], out=out[some])


def sides(matrices: Matrices, rows: Integer | slice) -> tuple[Single, Single]:
    """Some rows of both matrices as they are analysed, in float32."""
    return _sides(matrices, rows, None)


def _pieces(matrices: Matrices, count: int | None = None) -> Iterator[slice]:
    rows, channels = matrices.shape
    rows = rows if count is None else count
    together = max(1, PIECE // max(1, channels))
    for start in range(0, rows, together):
        yield slice(start, min(start + together, rows))


def _sides(matrices: Matrices, rows: Integer | slice, counts: Integer | None) -> tuple[Single, Single]:
    """Some rows of both sides in float32: what is not finite on either is 0, channels are weighted."""
    first, second = (to_single(side[rows]) for side in (matrices.first, matrices.second))
    if not matrices.finite:
        left, right = np.isfinite(first), np.isfinite(second)
        both = left & right
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        if counts is not None:
            for at, mask in enumerate((~same, ~left, ~right, ~both & ~same)):
                counts[:, at] += mask.sum(1)
        if not both.all():
            first, second = np.where(both, first, np.float32(0)), np.where(both, second, np.float32(0))
    elif counts is not None:
        counts[:, 0] += (first != second).sum(1)
    if matrices.weights is not None:
        first, second = first * matrices.weights, second * matrices.weights
    return first, second


def median(values: npt.NDArray[Any]) -> float:
    """The median of a vector; NaN where one takes part, and of none. numpy's own loads its masked arrays first."""
    count = values.size
    if not count:
        return math.nan
    half = count // 2
    if count < LONG:
        ordered = np.partition(values, (count - 1, half, max(half - 1, 0)))
        last, below = ordered[-1], ordered[half - 1]
    else:
        ordered = np.partition(values, half)
        last, below = ordered[half:].max(), ordered[:half].max()
    if math.isnan(last):
        return math.nan
    if count % 2:
        return float(ordered[half])
    # As ``np.mean`` rounds it, which takes twenty times as long for two of them.
    with np.errstate(over="ignore", invalid="ignore"):
        return float((below + ordered[half]) / ordered.dtype.type(2))


def row_numbers(sums: Float, parts: bool, numbers: Float, error: Float, cosine: Float) -> None:
    """From what ``sum_rows`` found the fields of ``RowSums``, of which ``numbers``, of shape ``(7, rows)``, has all but
    the last two."""
    first, second, added, product, total = sums.T
    baseline, target = (second, second) if parts else (first, second)
    middle = first if parts else np.maximum((first + second) / 2 - added / 4, 0.0)
    product = product if parts else product / 2
    sizes = np.sqrt((baseline + target) / 2)
    numbers[...] = baseline, target, middle, added, product, total, sizes
    error[...] = relative(added, sizes)
    norms = np.sqrt(middle * added)
    cosine[...] = np.where(norms > 0, np.abs(product) / np.maximum(norms, TINY), 0.0)


def relative(energy: Float, sizes: Float) -> Float:
    """Norm of what was added to each row, of which ``energy`` is the square, over its size; 0 where both are 0."""
    norm = np.sqrt(energy)
    return np.asarray(np.where(norm > 0, norm / np.maximum(sizes, TINY), 0.0), np.float64)


def add_parts(parts: Sequence[Float], sums: Float) -> None:
    """Sums of the channels, of shape ``(4, channels)``, from those of parts of the rows, of shape
    ``(channels / 8, 4, 8)``: of 8 channels each, then of the next."""
    lanes = np.zeros_like(parts[0])
    for part in parts:
        lanes += part
    sums[...] = lanes.transpose(1, 0, 2).reshape(4, -1)[:, : sums.shape[1]]


def standing_out(
    energy: Float, size: Float, product: Float, rows: float, share: float, least: float, z: float, tiny: float
) -> tuple[float, int, float, float, int, float]:
    """The channel whose error (``energy``: Σa²) is the largest over the usual one, and the one of which that part which
    a factor explains is large and significant: ratio and channel; ratio, factor, channel and the factor's standard
    error. At least one channel.

    Usual is the larger of the median energy, but at least ``least``, and of the channel's own ``size`` (Σm²) times the
    median share of error, but at least ``share``. ``z``: the significance that is asked for. ``product``: Σma.
    """
    share = max(median(energy / np.maximum(size, tiny)), share)
    least = max(median(energy), least)
    usual = np.maximum(np.maximum(least, size * share), tiny)
    ratio = np.sqrt(energy / usual)
    factor = product / np.maximum(size, tiny)
    left = np.maximum(energy - factor * product, 0.0)
    error = np.sqrt(left / rows / np.maximum(size, tiny))
    scaled = np.abs(factor) * np.sqrt(size / usual)
    clear = np.abs(factor) / np.maximum(error, 1e-9)
    at, worst = int(np.argmax(ratio)), int(np.argmax(np.minimum(clear / z, scaled)))
    return float(ratio[at]), at, float(scaled[worst]), float(factor[worst]), worst, float(error[worst])


def to_single(values: npt.NDArray[Any]) -> Single:
    """``values`` in float32; bfloat16 goes by its bits, which is many times faster than a cast."""
    if values.dtype.name == "bfloat16":
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return values.astype(np.float32, copy=False)

"""Passes over the two matrices of a tap: sums of each row and of each channel.

Compiled where the package was installed with a C compiler (``_compiled.c``), else numpy (``reference``). Elements are
taken in float32 and sums are float64; both agree but for the last bits. Matrices are read where they lie, in their own
dtypes, a few rows at a time, and the interpreter lock is let go.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis.kernel import reference
from comparator.diagnosis.kernel.reference import (
    TINY,
    Array,
    Float,
    Integer,
    Matrices,
    Single,
    midpoint_and_added,
    relative,
    sides,
    to_single,
)
from tensortap.compiled import load
from tensortap.lazy_rows import is_lazy, pieces

if TYPE_CHECKING:
    from comparator.diagnosis.kernel import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None

__all__ = [
    "COMPILED", "TINY", "ChannelSums", "Counts", "FirstLook", "Matrices", "PartSums", "RowSums", "arrays",
    "channel_sums", "channel_sums_of_parts", "first_look", "look_of_equal", "look_of_finite", "median",
    "midpoint_and_added", "relative", "row_sums", "sides", "standing_out", "to_single",
]  # fmt: skip

_KINDS = {"bfloat16": 0, "float16": 1, "float32": 2}
_TABLE = 3
_LANES = 8


class RowSums(Struct, frozen=True, eq=False):
    """Of each row: arrays of shape ``(rows,)``. The midpoint m is (x + y) / 2, what was added a = y - x."""

    baseline: Float
    """Σx²; 0 of parts, as ``target``."""
    target: Float
    middle: Float
    """Σm²"""
    added: Float
    """Σa²"""
    product: Float
    """Σma"""
    total: Float
    """Σa"""
    sizes: Float
    """Root of the mean of both sides' squared norms."""
    error: Float
    """Norm of what was added over the size; 0 where both are 0."""
    cosine: Float
    """|cos| between midpoint and what was added: 1 for a row that was scaled."""


class Counts(Struct, frozen=True, eq=False):
    """Of each row: arrays of shape ``(rows,)``."""

    differing: Integer
    """Elements that are not the same on both sides; NaN is the same as NaN."""
    baseline_nonfinite: Integer
    target_nonfinite: Integer
    apart: Integer
    """Places where only one side is not finite, or each has another such value."""


class ChannelSums(Struct, frozen=True, eq=False):
    """Of each channel, over rows that are multiplied by a factor each: arrays of shape ``(channels,)``."""

    added: Float
    middle: Float
    product: Float
    total: Float

    def plus(self, other: ChannelSums) -> ChannelSums:
        """The sums over the rows of both."""
        return ChannelSums(
            self.added + other.added,
            self.middle + other.middle,
            self.product + other.product,
            self.total + other.total,
        )

    def within(self, parts: int) -> ChannelSums:
        """The sums of equally long, contiguous parts of the channels: arrays of shape ``(parts,)``."""
        return ChannelSums(
            *(one.reshape(parts, -1).sum(1) for one in (self.added, self.middle, self.product, self.total))
        )


class PartSums(Struct, frozen=True, eq=False):
    """Sums of the channels over some rows, each times 1 / √(Σ(x² + y²) / 2), its size."""

    first: int
    """The number of the first row that may be among them."""
    taken: npt.NDArray[np.bool_]
    """From that on, of each row whether it is."""
    sums: Float
    """As ``ChannelSums``, shape ``(channels / 8, 4, 8)``: of 8 channels each, then of the next."""


class FirstLook(Struct, frozen=True, eq=False):
    """What one pass over both sides finds, before channels are weighted."""

    rows: RowSums
    counts: Counts
    energy: Float
    """Σ(x² + y²) of each channel, shape ``(channels,)``."""
    parts: tuple[PartSums, ...] = ()
    """What was found of the channels over parts of the rows, each row in one at most."""
    finite: bool = False
    """All elements are known to be finite."""


def first_look(matrices: Matrices) -> FirstLook:
    """Sums of the rows, what is counted in them, and the energy of each channel, in one pass."""
    matrices = replace(matrices, finite=False)
    rows, channels = matrices.shape
    counts, energy = np.zeros((rows, 4), np.int64), np.zeros(_padded(channels))
    sums = _sum_rows(matrices, counts, energy)
    return FirstLook(sums, Counts(*(np.ascontiguousarray(column) for column in counts.T)), energy[:channels])


def look_of_finite(sums: Float, differing: Integer, energy: Float, parts: tuple[PartSums, ...] = ()) -> FirstLook:
    """A first look from sums that were taken already, of a baseline and a target in which all is finite.

    ``sums``, of shape ``(rows, 5)``: Σx², Σy², Σa², Σ(x + y)a and Σa with a = y - x; ``differing``, of shape
    ``(rows,)``: elements that differ; ``energy``, of shape ``(channels,)``.
    """
    none = np.zeros(len(sums), np.int64)
    return FirstLook(_row_sums(sums, parts=False), Counts(differing, none, none, none), energy, parts, finite=True)


def look_of_equal(rows: int) -> FirstLook:
    """A first look at two matrices that are equal and finite, of which nothing else is asked: other sums are 0."""
    none, zero = np.zeros(rows, np.int64), np.zeros(rows)
    return FirstLook(RowSums(*[zero] * 9), Counts(*[none] * 4), np.zeros(0))


def row_sums(matrices: Matrices) -> RowSums:
    """Sums of the rows."""
    return _sum_rows(matrices, None, None)


def _sum_rows(matrices: Matrices, counts: Integer | None, energy: Float | None) -> RowSums:
    sums = np.zeros((matrices.shape[0], 5))
    for rows in pieces(matrices.first, matrices.second):
        some = matrices.rows(rows)
        counted = None if counts is None else counts[rows]
        task = _task(some)
        if task is None:
            reference.sum_rows(some, sums[rows], counted, None if energy is None else energy[: matrices.shape[1]])
        else:
            _compiled.rows(task, sums[rows], counted, energy)
    return _row_sums(sums, matrices.parts)


def _row_sums(sums: Float, parts: bool) -> RowSums:
    # What stays of a tap has memory of its own.
    numbers, error, cosine = np.empty((7, len(sums))), np.empty(len(sums)), np.empty(len(sums))
    if _compiled is None:
        with np.errstate(all="ignore"):
            reference.row_numbers(sums, parts, numbers, error, cosine)
    else:
        _compiled.row_numbers(sums, parts, TINY, numbers, error, cosine)
    baseline, target, middle, added, product, total, sizes = numbers
    return RowSums(baseline, target, middle, added, product, total, sizes, error, cosine)


def channel_sums(matrices: Matrices, rows: Integer, factors: Single) -> ChannelSums:
    """Sums of the channels over ``rows``, in ascending order, each of which is multiplied by its factor."""
    channels = matrices.shape[1]
    rows, factors = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(factors, np.float32)
    found = ChannelSums(*np.zeros((4, channels)))
    if not (is_lazy(matrices.first) or is_lazy(matrices.second)):
        return _sum_channels(matrices, rows, factors)
    for some in pieces(matrices.first, matrices.second):
        inside = slice(*np.searchsorted(rows, [some.start, some.stop]))
        found = found.plus(_sum_channels(matrices.rows(some), rows[inside] - some.start, factors[inside]))
    return found


def channel_sums_of_parts(
    matrices: Matrices, rows: Integer, factors: Single, plain: Single, parts: Sequence[PartSums]
) -> ChannelSums:
    """The same as ``channel_sums``, where ``parts`` were taken already with the factors ``plain``, one for each row of
    the matrices: those with rows that have another factor are taken anew."""
    every = len(rows) == len(plain)
    if every:
        same, left = factors == plain, np.ones(len(plain), np.bool_)
    else:
        same, left = np.zeros((2, len(plain)), np.bool_)
        same[rows] = factors == plain[rows]
        left[rows] = True
    known = []
    for part in parts:
        of_part, others = slice(part.first, part.first + len(part.taken)), ~part.taken
        if (same[of_part] | others).all():
            known.append(part.sums)
            left[of_part] &= others
    found, anew = _of_lanes(known, matrices.shape[1]), left if every else left[rows]
    return found.plus(channel_sums(matrices, rows[anew], factors[anew])) if anew.any() else found


def arrays(matrices: Matrices, rows: Integer, factors: Single) -> tuple[Single, Single]:
    """The midpoint and what was added of some rows, each times its factor: of shape ``(rows, channels)``."""
    found = np.empty((2, len(rows), matrices.shape[1]), np.float32)
    rows, factors = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(factors, np.float32)
    task = None if is_lazy(matrices.first) or is_lazy(matrices.second) else _task(matrices)
    if task is None:
        reference.arrays(matrices, rows, factors, found)
    else:
        _compiled.arrays(task, rows, factors, *found)
    return found[0], found[1]


def _sum_channels(matrices: Matrices, rows: Integer, factors: Single) -> ChannelSums:
    channels = matrices.shape[1]
    task = _task(matrices)
    if task is None:
        sums = np.zeros((4, channels))
        reference.sum_channels(matrices, rows, factors, sums)
        return ChannelSums(*sums)
    lanes = np.zeros((_padded(channels) // _LANES, 4, _LANES))
    _compiled.channels(task, rows, factors, lanes)
    return _of_lanes([lanes], channels)


def _of_lanes(parts: Sequence[Float], channels: int) -> ChannelSums:
    sums = np.zeros((4, channels))
    if parts and _compiled is not None:
        _compiled.add_parts(tuple(map(np.ascontiguousarray, parts)), sums)
    elif parts:
        reference.add_parts(parts, sums)
    return ChannelSums(*sums)


def standing_out(
    energy: Float, size: Float, product: Float, rows: float, share: float, least: float, z: float, tiny: float
) -> tuple[float, int, float, float, int, float]:
    """See ``reference.standing_out``."""
    if _compiled is None:
        return reference.standing_out(energy, size, product, rows, share, least, z, tiny)
    return _compiled.standing_out(energy, size, product, rows, share, least, z, tiny)


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES


def median(values: Array) -> float:
    """The median of a vector, in its own precision; NaN where one takes part, and of none."""
    if _compiled is None or values.dtype.char not in "fd" or not (values.dtype.isnative and values.flags.c_contiguous):
        return reference.median(values)
    return _compiled.median(values)


def _task(matrices: Matrices) -> Any:
    """What the compiled passes take; None where numpy has to do."""
    if _compiled is None:
        return None
    sides: list[Any] = []
    for side in (matrices.first, matrices.second):
        kind = _kind(side.dtype)
        if kind is None:
            return None
        plain = _plain(side)
        sides += [plain, *kind]
    return (*sides, matrices.weights, matrices.parts, matrices.finite)


def _plain(side: Array) -> Array:
    """The matrix with its channels side by side, under a dtype that the buffer protocol knows."""
    if side.strides[1] != side.dtype.itemsize or not side.flags.aligned or side.strides[0] % side.dtype.itemsize:
        side = np.ascontiguousarray(side)
    return side if side.dtype == np.float32 else side.view(np.uint8 if side.dtype.itemsize == 1 else np.uint16)


@functools.cache
def _kind(dtype: np.dtype[Any]) -> tuple[int, Array | None] | None:
    """What the compiled passes call a dtype, and for its kind ``TABLE`` the values of all bytes; None: unknown."""
    if not dtype.isnative:
        return None
    kind = _KINDS.get(dtype.name)
    if kind is not None:
        return kind, None
    if dtype.itemsize != 1 or dtype.names is not None or dtype.kind in "SUmM":
        return None
    return _TABLE, np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)

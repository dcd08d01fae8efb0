"""What an operation itself is asked for: of a sum what is left after its operands, of a branch a difference of taps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis.floors import Operation, floor_for, rounding_error
from comparator.diagnosis.kernel import (
    TINY,
    Matrices,
    RowSums,
    first_look,
    median,
    relative,
    row_sums,
    sides,
    to_single,
)
from comparator.diagnosis.kernel.reference import Array
from comparator.diagnosis.measures import channel_weights
from comparator.diagnosis.tap_graph import TapNode
from comparator.diagnosis.tap_rows import Float, Integer, Single, TapRows, join_rows
from tensortap.lazy_rows import computed, is_lazy, pieces, stacked

PIECE = 1 << 18
"""Elements."""
FEW_CHANNELS = 16
"""Up to so many, which a row may all have small by chance: of 16 normal ones one row in a million is below .3 of the
usual size, of a single one every tenth below .2."""
IDENTITY = 8.0
"""A sum is one when its residual's median is within so many floors."""


class Residuals(Struct, frozen=True):
    """How far the value is from the sum of its operands: largest and median relative residual of a row, per side."""

    baseline: float
    target: float
    baseline_median: float
    target_median: float


class Part(Struct, frozen=True, eq=False):
    """What the tests of a tap look at: midpoint, difference and sizes of the rows."""

    operation: Operation
    matrices: Matrices
    sums: RowSums
    sizes: Float
    inherited: Float | None
    extra_floor: Float
    residuals: Residuals | None


class Operands(Struct, frozen=True, eq=False):
    """A tap beside what it adds up, as far as that was recorded."""

    tap: TapRows
    node: TapNode
    value: Matrices
    """The value, its outlier channels shrunk."""
    sums: RowSums

    def part(self) -> Part:
        """What the operation itself is asked for."""
        sizes = self.sums.sizes
        nothing = np.zeros(len(sizes))
        if len(sizes) and (self.node.operation == "router" or self.value.shape[1] <= FEW_CHANNELS):
            # Few values (logits, gates) may all be small by chance; their error is that of values of usual size.
            sizes = np.maximum(sizes, median(sizes))
        elif self.tap.key.is_gradient and (sizes > 0).any():
            # Terms of a gradient cancel: behind a softmax that of a query which sees one key is nothing but rounding.
            sizes = np.maximum(sizes, median(sizes[sizes > 0]))
        plain = Part(self.node.operation, self.value, self.sums, sizes, None, nothing, None)
        if self.node.operation not in ("sum", "norm"):
            return plain
        summed = self._sum_of_operands() if self.tap.operands else None
        if summed is None:
            # Nothing to take off: the sum inherits the error of what it adds up, as far as that was measured.
            return replace(plain, operation="sum_without_identity") if self.node.operation == "sum" else plain
        first, second = summed
        if self.node.operation == "norm":
            return replace(plain, inherited=_error(_shrunk(Matrices(first, second, finite=True))))
        if self.node.branch is not None:
            return self._branch(first, second)
        weights = self.value.weights
        return self._sum(_weighted(first, weights), _weighted(second, weights), plain)

    def _sum_of_operands(self) -> tuple[Single, Single] | None:
        """The operands of each side added up; computed whenever rows of it are asked for, where the value or an operand
        is read some rows at a time."""
        shape, operands, places = self.value.shape, self.tap.operands, []
        for operand in operands:
            here, there = join_rows(self.tap.values.labels, operand.labels)
            if len(here) < shape[0] or operand.baseline.shape[1] != shape[1]:
                return None
            places.append(there)
        arrays = [[operand.baseline for operand in operands], [operand.target for operand in operands]]
        lazily = any(map(is_lazy, (self.value.first, self.value.second, *arrays[0], *arrays[1])))
        first, second = (_added_lazily(one, places) if lazily else _added(one, places, shape) for one in arrays)
        return first, second

    def _branch(self, first: Single, second: Single) -> Part:
        """The operand that was not recorded is the difference of two recorded values, with both their roundings."""
        operation = self.node.branch or "unknown"
        plain = replace(self.value, weights=None)
        whole = row_sums(plain).sizes + row_sums(Matrices(first, second, finite=True)).sizes
        first, second = _of_rows(lambda left, right, one, two: (left - one, right - two), plain, first, second)
        matrices = _shrunk(Matrices(first, second, finite=True))
        sums = row_sums(matrices)
        sizes = sums.sizes
        rounding = np.hypot(rounding_error(self.tap.baseline_dtype), rounding_error(self.tap.target_dtype))
        extra = np.where(sizes > 0, rounding * whole / np.maximum(sizes, TINY), 0.0)
        return Part(operation, matrices, sums, sizes, None, extra, None)

    def _sum(self, first: Single, second: Single, plain: Part) -> Part:
        of_operands = row_sums(Matrices(first, second, finite=True))
        sizes = np.maximum(plain.sizes, of_operands.sizes)
        # Of several operands each sum but the last is rounded as well.
        rounding = np.hypot(rounding_error(self.tap.baseline_dtype), rounding_error(self.tap.target_dtype))
        extra = plain.extra_floor + np.sqrt(max(len(self.tap.operands) - 2, 0)) * rounding
        residuals = np.zeros((2, len(sizes)))
        in_pieces = _is_read_in_pieces(first)
        every = (self.value.first, self.value.second, first, second)
        for rows in pieces(*every) if in_pieces else _pieces(self.value.shape):
            left, right = sides(self.value, rows)
            one, two = first[rows], second[rows]
            for at, rest in enumerate((left - one, right - two)):
                residuals[at, rows] = np.einsum("ij,ij->i", rest, rest, dtype=np.float64)
            if not in_pieces:
                first[rows], second[rows] = _middle_and_rest(left, right, one, two)
        errors = [relative(side, sizes) for side in residuals]
        found = Residuals(*(float(one.max()) for one in errors), *(median(one) for one in errors))
        if min(found.baseline_median, found.target_median) > self._identity_limit:
            inherited = of_operands.error
            return replace(plain, operation="sum_without_identity", inherited=inherited)
        if in_pieces:
            first, second = _of_rows(_middle_and_rest, self.value, first, second)
        matrices = Matrices(first, second, parts=True, finite=True)
        return Part("sum", matrices, row_sums(matrices), sizes, None, extra, found)

    @property
    def _identity_limit(self) -> float:
        tap = self.tap
        return IDENTITY * floor_for("sum", tap.baseline_dtype, tap.target_dtype, ranks=tap.ranks).floor


def _shrunk(matrices: Matrices) -> Matrices:
    """With the outlier channels shrunk."""
    return replace(matrices, weights=channel_weights(first_look(matrices).energy))


def _error(matrices: Matrices) -> Float:
    return row_sums(matrices).error


def _added(operands: Sequence[Array], places: Sequence[Integer], shape: tuple[int, int]) -> Single:
    """The sum of matrices of whose rows ``places`` are taken, in this order."""
    total = np.zeros(shape, np.float32)
    for operand, there in zip(operands, places, strict=True):
        for rows in _pieces(shape):
            total[rows] += _finite(operand[there[rows]])
    return total


def _added_lazily(operands: Sequence[Array], places: Sequence[Integer]) -> Single:
    """The same, some rows at a time."""
    ordered = [
        one if np.array_equal(there, np.arange(len(one))) else (one if is_lazy(one) else stacked([one])).take(there)
        for one, there in zip(operands, places, strict=True)
    ]

    def add(*some: Array) -> Single:
        total = _finite(some[0])
        for one in some[1:]:
            total += _finite(one)
        return total

    return computed(ordered, add, (len(places[0]), operands[0].shape[1]), np.dtype(np.float32))


def _finite(values: Array) -> Single:
    return np.nan_to_num(to_single(values), posinf=0.0, neginf=0.0)


def _weighted(values: Single, weights: Single | None) -> Single:
    if weights is None:
        return values
    if _is_read_in_pieces(values):
        return computed([values], lambda rows: rows * weights, values.shape, values.dtype)
    values *= weights
    return values


def _is_read_in_pieces(values: Array) -> bool:
    return is_lazy(values)


def _of_rows(
    function: Callable[[Single, Single, Single, Single], tuple[Single, Single]],
    value: Matrices,
    first: Single,
    second: Single,
) -> tuple[Single, Single]:
    """What ``function`` makes of the same rows of both sides of a value and of two matrices, in whose place it is put;
    computed whenever rows of it are asked for where they are read in pieces."""
    if not _is_read_in_pieces(first):
        for rows in _pieces(value.shape):
            first[rows], second[rows] = function(*sides(value, rows), first[rows], second[rows])
        return first, second

    def one_of_them(at: int) -> Callable[..., Single]:
        def read(left: Array, right: Array, one: Single, two: Single) -> Single:
            return function(*sides(replace(value, first=left, second=right), slice(None)), one, two)[at]

        return read

    arrays = (value.first, value.second, first, second)
    left, right = (computed(arrays, one_of_them(at), value.shape, first.dtype) for at in range(2))
    return left, right


def _middle_and_rest(left: Single, right: Single, first: Single, second: Single) -> tuple[Single, Single]:
    """The midpoint of both sides, and of their difference what that of the operands leaves."""
    middle = left + right
    middle *= np.float32(0.5)
    added = right - left
    added -= second - first
    return middle, added


def _pieces(shape: tuple[int, int]) -> Iterator[slice]:
    """Rows that are looked at together, so that what is computed of them stays in the processor's cache."""
    together = max(1, PIECE // max(1, shape[1]))
    for start in range(0, shape[0], together):
        yield slice(start, min(start + together, shape[0]))


def beyond_chance(cosine: Float, channels: int) -> Float:
    """The magnitudes of cosines between rows and their differences, less what few channels have by chance: of a single
    one each difference is a factor."""
    if channels > FEW_CHANNELS:
        return cosine
    chance = 1 / max(channels, 1)
    return np.sqrt(np.maximum(cosine**2 - chance, 0) / (1 - chance)) if chance < 1 else np.zeros_like(cosine)

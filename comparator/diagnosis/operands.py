"""What an operation itself is asked for: of a sum what is left after its operands, of a branch a difference of taps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis.floors import Operation, floor_for, rounding_error
from comparator.diagnosis.kernel import Matrices, RowSums, first_look, row_sums, sides, to_single
from comparator.diagnosis.measures import TINY, channel_weights, median, relative, sizes_of
from comparator.diagnosis.tap_graph import TapNode
from comparator.diagnosis.tap_rows import Float, Single, TapRows, join_rows
from tensortap.lazy_rows import is_lazy

PIECE = 1 << 18
"""Elements."""
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
        sizes = sizes_of(self.sums)
        nothing = np.zeros(len(sizes))
        if self.node.operation == "router" and len(sizes):
            # Few logits may all be small by chance; their error is that of logits of usual size.
            sizes = np.maximum(sizes, median(sizes))
        plain = Part(self.node.operation, self.value, self.sums, sizes, None, nothing, None)
        if not self.tap.operands or self.node.operation not in ("sum", "norm"):
            return plain
        summed = self._sum_of_operands()
        if summed is None:
            return plain
        first, second = summed
        if self.node.operation == "norm":
            return replace(plain, inherited=_error(_shrunk(Matrices(first, second, finite=True))))
        if self.node.branch is not None:
            return self._branch(first, second)
        weights = self.value.weights
        if weights is not None:
            first *= weights
            second *= weights
        return self._sum(first, second, plain)

    def _sum_of_operands(self) -> tuple[Single, Single] | None:
        shape, labels = self.value.shape, self.tap.values.labels
        if is_lazy(self.value.first) or is_lazy(self.value.second):
            more = 8 * shape[0] * shape[1] / 1e9
            raise MemoryError(f"{self.tap.key.label} is a sum, and to add up its operands takes {more:.3g} GB")
        first, second = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for operand in self.tap.operands:
            here, there = join_rows(labels, operand.labels)
            if len(here) < shape[0] or operand.baseline.shape[1] != shape[1]:
                return None
            for total, side in ((first, operand.baseline), (second, operand.target)):
                for rows in _pieces(shape):
                    total[rows] += np.nan_to_num(to_single(side[there[rows]]), posinf=0.0, neginf=0.0)
        return first, second

    def _branch(self, first: Single, second: Single) -> Part:
        """The operand that was not recorded is the difference of two recorded values, with both their roundings."""
        operation = self.node.branch or "unknown"
        plain = replace(self.value, weights=None)
        whole = sizes_of(row_sums(plain)) + sizes_of(row_sums(Matrices(first, second, finite=True)))
        for rows in _pieces(plain.shape):
            left, right = sides(plain, rows)
            np.subtract(left, first[rows], out=first[rows])
            np.subtract(right, second[rows], out=second[rows])
        matrices = _shrunk(Matrices(first, second, finite=True))
        sums = row_sums(matrices)
        sizes = sizes_of(sums)
        rounding = np.hypot(rounding_error(self.tap.baseline_dtype), rounding_error(self.tap.target_dtype))
        extra = np.where(sizes > 0, rounding * whole / np.maximum(sizes, TINY), 0.0)
        return Part(operation, matrices, sums, sizes, None, extra, None)

    def _sum(self, first: Single, second: Single, plain: Part) -> Part:
        operands = Matrices(first, second, finite=True)
        of_operands = row_sums(operands)
        sizes = np.maximum(plain.sizes, sizes_of(of_operands))
        middle, added = np.empty_like(first), second
        residuals = np.zeros((2, len(sizes)))
        for rows in _pieces(self.value.shape):
            left, right = sides(self.value, rows)
            for at, (out, inside) in enumerate(((left, first[rows]), (right, second[rows]))):
                rest = out - inside
                residuals[at, rows] = np.einsum("ij,ij->i", rest, rest, dtype=np.float64)
            middle[rows] = left + right
            middle[rows] *= np.float32(0.5)
            # Of the difference what the operands' differences leave; it takes the place of the second operand.
            np.subtract(right - left, second[rows] - first[rows], out=added[rows])
        errors = [relative(side, sizes) for side in residuals]
        found = Residuals(*(float(one.max()) for one in errors), *(median(one) for one in errors))
        if min(found.baseline_median, found.target_median) > self._identity_limit:
            inherited = relative(of_operands.added, sizes_of(of_operands))
            return replace(plain, operation="sum_without_identity", inherited=inherited)
        matrices = Matrices(middle, added, parts=True, finite=True)
        return Part("sum", matrices, row_sums(matrices), sizes, None, plain.extra_floor, found)

    @property
    def _identity_limit(self) -> float:
        tap = self.tap
        return IDENTITY * floor_for("sum", tap.baseline_dtype, tap.target_dtype, ranks=tap.ranks).floor


def _shrunk(matrices: Matrices) -> Matrices:
    """With the outlier channels shrunk."""
    return replace(matrices, weights=channel_weights(first_look(matrices).energy))


def _error(matrices: Matrices) -> Float:
    sums = row_sums(matrices)
    return relative(sums.added, sizes_of(sums))


def _pieces(shape: tuple[int, int]) -> Iterator[slice]:
    """Rows that are looked at together, so that what is computed of them stays in the processor's cache."""
    together = max(1, PIECE // max(1, shape[1]))
    for start in range(0, shape[0], together):
        yield slice(start, min(start + together, shape[0]))

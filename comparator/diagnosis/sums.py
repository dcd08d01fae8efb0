"""What an operation itself is asked for: of a sum what is left after its operands, of a branch a difference of taps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from comparator.diagnosis.floors import Operation, floor_for, rounding_error
from comparator.diagnosis.measures import TINY, channel_weights, midpoint, relative, row_sizes
from comparator.diagnosis.rows import Float, Single, TapRows, join_rows
from comparator.diagnosis.taps import TapNode

IDENTITY = 8.0
"""A sum is one when its residual's median is within so many floors."""


@dataclass(frozen=True)
class Residuals:
    """How far the value is from the sum of its operands: largest and median relative residual of a row, per side."""

    baseline: float
    target: float
    baseline_median: float
    target_median: float


@dataclass(frozen=True, eq=False)
class Part:
    """What the tests of a tap look at: midpoint, difference and sizes of the rows."""

    operation: Operation
    middle: Single
    added: Single
    sizes: Float
    inherited: Float | None
    extra_floor: Float
    residuals: Residuals | None


@dataclass(frozen=True, eq=False)
class Weighted:
    """A value whose outlier channels are shrunk."""

    middle: Single
    added: Single
    sizes: Float

    @classmethod
    def of(cls, baseline: Single, target: Single, weights: Single) -> Weighted:
        left, right = baseline * weights, target * weights
        sizes, middle = row_sizes(left, right), midpoint(left, right)
        return cls(middle, np.subtract(right, left, out=right), sizes)


@dataclass(frozen=True, eq=False)
class Operands:
    """A tap beside what it adds up, as far as that was recorded."""

    tap: TapRows
    node: TapNode
    baseline: Single
    """Without NaN and infinities, as the target."""
    target: Single

    def part(self, weights: Single, value: Weighted) -> Part:
        """``weights``: what shrinks the outlier channels of the value; ``value``: the value with them."""
        nothing, sizes = np.zeros(len(value.sizes)), value.sizes
        if self.node.operation == "router" and len(sizes):
            # Few logits may all be small by chance; their error is that of logits of usual size.
            sizes = np.maximum(sizes, float(np.median(sizes)))
        plain = Part(self.node.operation, value.middle, value.added, sizes, None, nothing, None)
        if not self.tap.operands or self.node.operation not in ("sum", "norm"):
            return plain
        summed = self._sum_of_operands()
        if summed is None:
            return plain
        first, second = summed
        if self.node.operation == "norm":
            own = channel_weights(first, second).astype(np.float32)
            first, second = first * own, second * own
            inherited = relative(second - first, row_sizes(first, second))
            return Part("norm", plain.middle, plain.added, plain.sizes, inherited, nothing, None)
        if self.node.branch is not None:
            return self._branch(first, second)
        return self._sum(first * weights, second * weights, plain)

    def _sum_of_operands(self) -> tuple[Single, Single] | None:
        shape, labels = self.baseline.shape, self.tap.values.labels
        first, second = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for operand in self.tap.operands:
            here, there = join_rows(labels, operand.labels)
            if len(here) < shape[0] or operand.baseline.shape[1] != shape[1]:
                return None
            first += np.nan_to_num(operand.baseline[there], posinf=0.0, neginf=0.0)
            second += np.nan_to_num(operand.target[there], posinf=0.0, neginf=0.0)
        return first, second

    def _branch(self, first: Single, second: Single) -> Part:
        """The operand that was not recorded is the difference of two recorded values, with both their roundings."""
        operation = self.node.branch or "unknown"
        left, right = self.baseline - first, self.target - second
        whole = row_sizes(self.baseline, self.target) + row_sizes(first, second)
        weights = channel_weights(left, right).astype(np.float32)
        left, right = left * weights, right * weights
        sizes = row_sizes(left, right)
        rounding = np.hypot(rounding_error(self.tap.baseline_dtype), rounding_error(self.tap.target_dtype))
        extra = np.where(sizes > 0, rounding * whole / np.maximum(sizes, TINY), 0.0)
        return Part(operation, midpoint(left, right), right - left, sizes, None, extra, None)

    def _sum(self, first: Single, second: Single, plain: Part) -> Part:
        left = np.asarray(plain.middle - plain.added / 2, np.float32)
        right = np.asarray(plain.middle + plain.added / 2, np.float32)
        sizes = np.maximum(plain.sizes, row_sizes(first, second))
        residuals = [relative(out - inside, sizes) for out, inside in ((left, first), (right, second))]
        found = Residuals(
            float(residuals[0].max()),
            float(residuals[1].max()),
            float(np.median(residuals[0])),
            float(np.median(residuals[1])),
        )
        if min(found.baseline_median, found.target_median) > self._identity_limit:
            inherited = relative(second - first, row_sizes(first, second))
            operation: Operation = "sum_without_identity"
            return Part(operation, plain.middle, plain.added, plain.sizes, inherited, plain.extra_floor, None)
        added = plain.added - (second - first)
        return Part("sum", plain.middle, added, sizes, None, plain.extra_floor, found)

    @property
    def _identity_limit(self) -> float:
        tap = self.tap
        return IDENTITY * floor_for("sum", tap.baseline_dtype, tap.target_dtype, ranks=tap.ranks).floor

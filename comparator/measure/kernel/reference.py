"""The pass in numpy, which defines the order of every sum: where no compiled kernel is, and for complex numbers.

A vector is cut into rows. A row is summed in 8 lanes, element i in lane i mod 8, one after the other; then lanes l and
l + 4 are added, of these l and l + 2, then both. The sums of rows are added one after the other. All is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from comparator.measure.kernel.sums import Array, Float, PairSums, SideSums, to_working, widen

CHUNK = 1 << 16
"""Elements that are looked at together: so many stay in the processor's cache. A multiple of the lanes."""
LANES = 8
_NAMES = ("total", "absolute", "square")
_PAIR = ("cross", "squared", "gap", "left", "right")


def measure_sums(
    baseline: Array, target: Array, dtype: np.dtype[Any], length: int, equal_nonfinite: bool, rows: Float | None
) -> PairSums:
    """The sums over two vectors that are cut into rows of ``length``; ``rows`` is filled with ``rel`` of each."""
    pass_ = _Pass(equal_nonfinite)
    with np.errstate(all="ignore"):
        for start, count, width in _blocks(baseline.size, length):
            pass_.begin(count)
            for at in range(0, width, CHUNK):
                some = min(CHUNK, width - at)
                where = slice(start + at, start + at + count * some)
                x, y = (to_working(side[where], dtype).reshape(count, some) for side in (baseline, target))
                pass_.add(x, y, start + at)
            numbers = pass_.end()
            if rows is not None:
                squares = numbers["left"] + numbers["right"]
                first = start // length
                rel = np.where(numbers["squared"] == 0, 0.0, numbers["squared"] / squares)
                rows[first : first + count] = rel
    return pass_.sums()


def _blocks(size: int, length: int) -> Iterator[tuple[int, int, int]]:
    """First element, number of rows and their length, of rows that are summed together."""
    together = max(1, CHUNK // length)
    whole = size // length
    for row in range(0, whole, together):
        yield row * length, min(together, whole - row), length
    if size % length:
        yield whole * length, 1, size % length


class _Pass:
    def __init__(self, equal_nonfinite: bool) -> None:
        self._equal_nonfinite = equal_nonfinite
        self._totals = dict.fromkeys([f"{side} {name}" for side in "xy" for name in _NAMES] + list(_PAIR), 0.0)
        self._lanes: dict[str, Float] = {}
        self._low, self._high = {"x": math.inf, "y": math.inf}, {"x": -math.inf, "y": -math.inf}
        self._nan, self._infinite = {"x": 0, "y": 0}, {"x": 0, "y": 0}
        self._differing = self._nonfinite_equal = self._largest_at = 0
        self._largest = -1.0

    def begin(self, rows: int) -> None:
        """Begin with ``rows`` new rows."""
        self._lanes = {name: np.zeros((rows, LANES)) for name in self._totals}

    def add(self, x: Array, y: Array, at: int) -> None:
        """Add the next elements of the rows, of shape ``(rows, width)``; the first is number ``at``."""
        self._side("x", x)
        self._side("y", y)
        finite_x, finite_y = np.isfinite(x), np.isfinite(y)
        if not (finite_x.all() and finite_y.all()):
            same = ~finite_x & ((x == y) | (np.isnan(x) & np.isnan(y)))
            self._nonfinite_equal += int(same.sum())
            if self._equal_nonfinite:
                x, y = np.where(same, 0, x), np.where(same, 0, y)
        gap = np.abs(y - x)
        index = int(gap.argmax())
        peak = float(gap.reshape(-1)[index])
        if not math.isnan(self._largest) and (math.isnan(peak) or peak > self._largest):
            self._largest, self._largest_at = peak, at + index
        self._differing += int(np.count_nonzero(gap))
        wide_x, wide_y = widen(x), widen(y)
        for name, side in (("left", wide_x), ("right", wide_y), ("squared", wide_y - wide_x)):
            self._extend(name, _square(side))
        self._extend("gap", gap)
        self._extend("cross", _product(wide_x, wide_y))

    def _side(self, side: str, values: Array) -> None:
        sizes = np.abs(values)
        ordered = sizes if values.dtype.kind == "c" else values
        low, high = float(ordered.min()), float(ordered.max())
        self._low[side] = math.nan if math.isnan(low) else min(self._low[side], low)
        self._high[side] = math.nan if math.isnan(high) else max(self._high[side], high)
        self._nan[side] += int(np.isnan(values).sum())
        self._infinite[side] += int(np.isinf(values).sum())
        wide = widen(values)
        self._extend(f"{side} total", wide.real)
        self._extend(f"{side} absolute", np.abs(wide))
        self._extend(f"{side} square", _square(wide))

    def _extend(self, name: str, values: Array) -> None:
        rows, width = values.shape
        table = np.zeros((rows, -(-width // LANES) + 1, LANES))
        table[:, 0] = self._lanes[name]
        table.reshape(rows, -1)[:, LANES : LANES + width] = values
        self._lanes[name] = np.add.reduce(table, axis=1)

    def end(self) -> dict[str, Float]:
        """Add the rows to the totals; returns the sums of each."""
        found = {}
        for name, lanes in self._lanes.items():
            half = lanes[:, :4] + lanes[:, 4:]
            quarter = half[:, :2] + half[:, 2:]
            found[name] = quarter[:, 0] + quarter[:, 1]
            self._totals[name] = float(np.add.accumulate(np.concatenate([[self._totals[name]], found[name]]))[-1])
        return found

    def sums(self) -> PairSums:
        """What was added."""
        sides = [
            SideSums(
                self._totals[f"{side} total"],
                self._totals[f"{side} absolute"],
                self._totals[f"{side} square"],
                math.nan if self._nan[side] else self._low[side],
                math.nan if self._nan[side] else self._high[side],
                self._nan[side],
                self._infinite[side],
            )
            for side in "xy"
        ]
        return PairSums(
            sides[0],
            sides[1],
            self._totals["cross"],
            self._totals["squared"],
            self._totals["gap"],
            self._totals["left"],
            self._totals["right"],
            self._differing,
            self._nonfinite_equal,
            self._largest,
            self._largest_at,
        )


def _square(values: Array) -> Array:
    """x², of complex numbers the squared magnitude."""
    if values.dtype.kind == "c":
        return np.asarray(values.real * values.real + values.imag * values.imag)
    return np.asarray(values * values)


def _product(x: Array, y: Array) -> Array:
    """xy, of complex numbers the real part of x̄y."""
    if x.dtype.kind == "c":
        return np.asarray(x.real * y.real + x.imag * y.imag)
    return np.asarray(x * y)

"""The pass in numpy, which defines the order of every sum: where no compiled kernel is, and for complex numbers.

A vector is cut into rows. A row is summed in 8 lanes, element i in lane i mod 8, one after the other; then lanes l
and l + 4 are added, of these l and l + 2, then both. The sums of rows are added one after the other. All is float64,
but for this: where both sides are of at most 8 significant bits (``is_narrow``), each lane of a block of 1024
elements of a row is summed in float32, from 0, before it is added to the lane. A block of bfloat16 on both sides has 16
lanes there: element i goes to lane i mod 32 // 2, of two neighbours the second first, and lane l + 8 is added to lane l
in float64. Products of two such values are exact in float32, and so are sums of values of one size; else the sum of a
block is off by at most 128 roundings of float32. (Products of bfloat16 below 2**-126 may be taken for zeros, far below
the last bit.)
Blocks with numbers beyond 2**±40 on a side or in the difference, with NaN or infinity are summed in float64
(``_is_moderate``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.measure.kernel.sums import Array, Float, PairSums, SideSums, to_working, widen

CHUNK = 1 << 16
"""Elements that are looked at together: so many stay in the processor's cache. A multiple of the lanes."""
LANES = 8
BLOCK = 1024
"""Elements of a row whose lanes may be summed in float32."""
WOVEN = 16
"""Lanes of a block of bfloat16 on both sides."""
Mask = npt.NDArray[np.bool_]
_NAMES = ("total", "absolute", "square")
_PAIR = ("along", "squared", "gap", "left", "right")


def _blocks(size: int, length: int) -> Iterator[tuple[int, int, int]]:
    """First element, number of rows and their length, of rows that are summed together."""
    together = max(1, CHUNK // length)
    whole = size // length
    for row in range(0, whole, together):
        yield row * length, min(together, whole - row), length
    if size % length:
        yield whole * length, 1, size % length


class Pass:
    """The sums over two vectors that are cut into rows of ``length``, of which it gets some after others."""

    def __init__(self, dtype: np.dtype[Any], length: int, equal_nonfinite: bool, narrow: bool, woven: bool) -> None:
        self._dtype = dtype
        self._length = length
        self._equal_nonfinite = equal_nonfinite
        self._seen = 0
        self._narrow = narrow
        self._woven = woven
        """Both sides are of bfloat16."""
        self._differing_in_rows: Float = np.zeros(0)
        self._totals = dict.fromkeys([f"{side} {name}" for side in "xy" for name in _NAMES] + list(_PAIR), 0.0)
        self._lines: dict[str, list[Float]] = {name: [] for name in self._totals}
        """Sums of the rows, in their order."""
        self._lanes: dict[str, Float] = {}
        self._low, self._high = {"x": math.inf, "y": math.inf}, {"x": -math.inf, "y": -math.inf}
        self._nan, self._infinite = {"x": 0, "y": 0}, {"x": 0, "y": 0}
        self._differing = self._nonfinite_equal = self._largest_at = 0
        self._largest = -1.0

    def measure(self, baseline: Array, target: Array, rows: Float | None, energy: Float | None) -> None:
        """Add whole rows of both; the table ``rows`` is filled with the sums of each, and to ``energy`` are added those
        of each element of a row (``RowTable``)."""
        length, dtype = self._length, self._dtype
        with np.errstate(all="ignore"):
            for start, count, width in _blocks(baseline.size, length):
                self._begin(count)
                for at in range(0, width, CHUNK):
                    some = min(CHUNK, width - at)
                    where = slice(start + at, start + at + count * some)
                    x, y = (to_working(side[where], dtype).reshape(count, some) for side in (baseline, target))
                    self._add(x, y, self._seen + start + at)
                    if energy is not None:
                        energy[at : at + some] += sum(_square(widen(side)).sum(0) for side in (x, y))
                numbers = self._end()
                if rows is not None:
                    totals = numbers["y total"] - numbers["x total"]
                    product = 2 * numbers["along"] + numbers["squared"]
                    sums = [numbers["left"], numbers["right"], numbers["squared"], product, totals]
                    rows[start // length :][:count] = np.stack([*sums, self._differing_in_rows], axis=1)
        self._seen += baseline.size

    def _begin(self, rows: int) -> None:
        """Begin with ``rows`` new rows."""
        self._lanes = {name: np.zeros((rows, LANES)) for name in self._totals}
        self._differing_in_rows = np.zeros(rows)

    def _add(self, x: Array, y: Array, at: int) -> None:
        """Add the next elements of the rows, of shape ``(rows, width)``; the first is number ``at``."""
        finite_x, finite_y = np.isfinite(x), np.isfinite(y)
        moderate = self._is_moderate(x, y)
        self._side("x", x, moderate)
        self._side("y", y, moderate)
        if not (finite_x.all() and finite_y.all()):
            same = ~finite_x & ((x == y) | (np.isnan(x) & np.isnan(y)))
            self._nonfinite_equal += int(same.sum())
            if self._equal_nonfinite:
                x, y = np.where(same, 0, x), np.where(same, 0, y)
                moderate = self._is_moderate(x, y)
        gap = np.abs(y - x)
        index = int(gap.argmax())
        peak = float(gap.reshape(-1)[index])
        if not math.isnan(self._largest) and (math.isnan(peak) or peak > self._largest):
            self._largest, self._largest_at = peak, at + index
        differing = np.count_nonzero(gap, axis=1)
        self._differing_in_rows += differing
        self._differing += int(differing.sum())
        self._extend("left", moderate, _square, x)
        self._extend("right", moderate, _square, y)
        self._extend("squared", moderate, lambda x, y: _square(y - x), x, y)
        self._extend("along", moderate, lambda x, y: _product(x, y - x), x, y)
        self._extend("gap", moderate, np.abs, gap)

    def _is_moderate(self, x: Array, y: Array) -> Mask:
        """Which blocks are summed in float32: shape ``(rows, blocks)``."""
        rows, width = x.shape
        found = np.full((rows, -(-width // BLOCK)), self._narrow)
        if self._narrow:
            for sizes in (np.abs(x), np.abs(y), np.abs(y - x)):
                most = _blocks_of(sizes).max(axis=(2, 3))
                found &= (most == 0) | ((most >= 2.0**-40) & (most <= 2.0**40))
        return found

    def _side(self, side: str, values: Array, moderate: Mask) -> None:
        sizes = np.abs(values)
        ordered = sizes if values.dtype.kind == "c" else values
        low, high = float(ordered.min()), float(ordered.max())
        self._low[side] = math.nan if math.isnan(low) else min(self._low[side], low)
        self._high[side] = math.nan if math.isnan(high) else max(self._high[side], high)
        self._nan[side] += int(np.isnan(values).sum())
        self._infinite[side] += int(np.isinf(values).sum())
        self._extend(f"{side} total", moderate, np.real, values)
        self._extend(f"{side} absolute", moderate, np.abs, values)
        self._extend(f"{side} square", moderate, _square, values)

    def _extend(self, name: str, moderate: Mask, function: Callable[..., Array], *sides: Array) -> None:
        """Add what the function makes of the sides to the lanes, of moderate blocks in float32, else in float64."""
        lanes = self._lanes[name]
        parts = _blocks_of(function(*sides)) if moderate.any() else None
        if parts is not None:
            parts = _woven(parts) if self._woven else parts
            singles = np.add.reduce(parts, axis=2).astype(np.float64)
            singles = singles[..., :LANES] + singles[..., LANES:] if self._woven else singles
            if moderate.all():
                self._lanes[name] = np.add.reduce(np.concatenate([lanes[:, None], singles], axis=1), axis=1)
                return
        values = function(*map(widen, sides))
        if parts is None:
            self._lanes[name] = _added(lanes, values)
            return
        for block in range(moderate.shape[1]):
            in_double = _added(lanes, values[:, block * BLOCK : (block + 1) * BLOCK])
            lanes = np.where(moderate[:, block, None], lanes + singles[:, block], in_double)
        self._lanes[name] = lanes

    def _end(self) -> dict[str, Float]:
        """Add the rows to the totals; returns the sums of each."""
        found = {}
        for name, lanes in self._lanes.items():
            half = lanes[:, :4] + lanes[:, 4:]
            quarter = half[:, :2] + half[:, 2:]
            found[name] = quarter[:, 0] + quarter[:, 1]
            self._lines[name].append(found[name])
            self._totals[name] = _after(self._totals[name], found[name])
        return found

    def join(self, other: Pass) -> None:
        """Add what another pass has found of the next rows."""
        for name, lines in other._lines.items():
            for found in lines:
                self._totals[name] = _after(self._totals[name], found)
            self._lines[name] += lines
        for side in "xy":
            lows, highs = (self._low[side], other._low[side]), (self._high[side], other._high[side])
            bad = any(map(math.isnan, (*lows, *highs)))
            self._low[side], self._high[side] = (math.nan, math.nan) if bad else (min(lows), max(highs))
            self._nan[side] += other._nan[side]
            self._infinite[side] += other._infinite[side]
        self._differing += other._differing
        self._nonfinite_equal += other._nonfinite_equal
        if not math.isnan(self._largest) and (math.isnan(other._largest) or other._largest > self._largest):
            self._largest, self._largest_at = other._largest, self._seen + other._largest_at
        self._seen += other._seen

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
            self._totals["along"],
            self._totals["squared"],
            self._totals["gap"],
            self._totals["left"],
            self._totals["right"],
            self._differing,
            self._nonfinite_equal,
            self._largest,
            self._largest_at,
        )


def _after(total: float, rows: Float) -> float:
    """A total after rows were added, one after the other."""
    return float(np.add.accumulate(np.concatenate([[total], rows]))[-1])


def _blocks_of(values: Array) -> Array:
    """Rows as blocks of groups of lanes, filled up with zeros: shape ``(rows, blocks, BLOCK / LANES, LANES)``."""
    rows, width = values.shape
    filled = np.zeros((rows, -(-width // BLOCK) * BLOCK), values.dtype)
    filled[:, :width] = values
    return filled.reshape(rows, -1, BLOCK // LANES, LANES)


def _woven(blocks: Array) -> Array:
    """Blocks as groups of the lanes of bfloat16: shape ``(rows, blocks, BLOCK / WOVEN, WOVEN)``."""
    rows, count = blocks.shape[:2]
    pairs = blocks.reshape(rows, count, -1, WOVEN, 2)[..., ::-1]
    return np.moveaxis(pairs, -1, -2).reshape(rows, count, -1, WOVEN)


def _added(lanes: Float, values: Array) -> Float:
    rows, width = values.shape
    table = np.zeros((rows, -(-width // LANES) + 1, LANES))
    table[:, 0] = lanes
    table.reshape(rows, -1)[:, LANES : LANES + width] = values
    return np.asarray(np.add.reduce(table, axis=1))


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

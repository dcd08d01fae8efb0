"""One pass over both sides of a pair: every sum that a difference is made from.

Compiled where the package was installed with a C compiler (``_compiled.c``), else numpy (``reference``). Both add in
one order, which ``reference`` defines, and agree in every bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comparator.measure.kernel import reference
from comparator.measure.kernel.parts import After, Before, Parts
from comparator.measure.kernel.sums import (
    COLUMNS,
    Array,
    Float,
    PairSums,
    RowTable,
    SideSums,
    is_narrow,
    working_dtype,
)
from tensortap.compiled import load
from tensortap.lazy_rows import is_lazy, pieces

if TYPE_CHECKING:
    from comparator.measure.kernel import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None
SEGMENT = 4096
"""Elements that are summed like a row where rows are not asked for."""
PIECE = 4 << 20
"""Bytes of one side that are in the cache for two looks at them."""
LARGE = 8 << 20
"""Bytes of one side from which it is looked at part by part."""

_KINDS = {"bfloat16": 0, "float16": 1, "float32": 2, "float64": 3, "int8": 4, "uint8": 5, "int16": 6, "uint16": 7}
_KINDS |= {"int32": 8, "uint32": 9, "int64": 10, "uint64": 11, "bool": 12}
_TABLE = 13


def measure_sums(
    baseline: Array,
    target: Array,
    *,
    dtype: np.dtype[Any] | None = None,
    equal_nonfinite: bool = False,
    by_row: bool = False,
    by_channel: bool = False,
    before: Sequence[Before] = (),
    after: After | None = None,
    digests: bool = False,
    threads: int = 1,
) -> tuple[PairSums, RowTable | None]:
    """The sums over two arrays of one shape, of any numeric dtypes.

    They are taken in ``dtype`` (of ``working_dtype``; by default the one that holds both) and added in float64; where
    both sides are of at most 8 significant bits, blocks of a row are added in float32 first. ``equal_nonfinite`` takes
    NaN on both sides, and the same infinity on both, for zeros where the difference is concerned. ``by_row`` also gives
    the sums of each slice along the first dimension, ``by_channel`` then those of each element of a slice too (in
    float32 alone), which mean nothing where values are not finite, and may be left out where all are equal.

    ``before`` is for what else reads the same memory, so that it comes once: where both arrays are contiguous, each is
    called with the number of elements, from the first on, that are looked at next, and ``after`` with those that were
    looked at. ``digests`` says that the former take the XXH3-64 of the bytes of each side: they are not called where
    the table has it. Of large arrays that are contiguous ``threads`` share the work, this one among them; what is found
    is the same for any number.
    """
    if dtype is None:
        dtype = np.promote_types(working_dtype(baseline.dtype), working_dtype(target.dtype))
    rows = max(1, baseline.shape[0]) if by_row else 1
    length = max(1, baseline.size // rows) if by_row else SEGMENT
    kinds = kind_of(baseline.dtype), kind_of(target.dtype)
    compiled = _compiled is not None and dtype.kind == "f" and None not in kinds
    begin = functools.partial(
        _Compiled if compiled else _Reference, dtype, (baseline.dtype, target.dtype), length, equal_nonfinite
    )
    by_channel = by_channel and dtype == np.float32 and bool(baseline.size)
    sums, table = begin(), _table(baseline, length, by_channel) if by_row else None
    at_once = not baseline.ndim or not (is_lazy(baseline) or is_lazy(target))
    if not at_once:
        row = max(1, baseline.size // max(1, len(baseline)))
        for some in pieces(baseline, target, multiple=1 if by_row else SEGMENT // math.gcd(SEGMENT, row)):
            columns = None if table is None else table.columns[some]
            sums.add(baseline[some], target[some], columns, None if table is None else table.energy)
    elif _is_cut(baseline, target, before):
        parts = Parts(begin, (baseline.reshape(-1), target.reshape(-1)), length, table, PIECE)
        taken = _Digests.begin() if digests and compiled and parts.can_be_digested else None
        parts.measure(sums, before if taken is None else (), threads, taken, after)
        if table is not None:
            both = () if taken is None else taken.found(baseline, target)
            table = RowTable(table.columns, table.energy, parts=parts.channels(), digests=both)
    else:
        columns, energy = (None, None) if table is None else (table.columns, table.energy)
        sums.add(baseline, target, columns, energy)
    if table is not None and table.energy is not None and math.isnan(table.energy[0]):
        found = sums.found()
        finite = not any(side.nan or side.infinite for side in (found.baseline, found.target))
        return found, RowTable(table.columns, alike=at_once and finite, digests=table.digests)
    return sums.found(), table


def _table(side: Array, length: int, by_channel: bool) -> RowTable:
    return RowTable(np.zeros((side.shape[0], COLUMNS)), np.zeros(length) if by_channel else None)


def _is_cut(baseline: Array, target: Array, before: Sequence[Before]) -> bool:
    """Whether arrays are looked at part by part, however many threads there are: of channels other sums come first."""
    if not baseline.size or not (baseline.flags.c_contiguous and target.flags.c_contiguous):
        return False
    return bool(before) or max(baseline.nbytes, target.nbytes) >= LARGE


class _Compiled:
    """A pass of the compiled kernel."""

    def __init__(
        self, dtype: np.dtype[Any], dtypes: tuple[np.dtype[Any], np.dtype[Any]], length: int, equal_nonfinite: bool
    ) -> None:
        self._wide = dtype.itemsize == 8
        self._kinds = [kind_of(one) for one in dtypes]
        self._length = length
        self._equal_nonfinite = equal_nonfinite
        self._state = _compiled.state()

    def add(
        self,
        baseline: Array,
        target: Array,
        rows: Float | None,
        energy: Float | None,
        *,
        leaves_out: bool = True,
        lines: Float | None = None,
        channels: Float | None = None,
        taken: npt.NDArray[np.uint8] | None = None,
        digests: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """See ``Pass``. ``lines``, of shape ``(rows, 11)``, takes what is then given to ``join``."""
        kind_x, kind_y = self._kinds
        assert kind_x is not None
        assert kind_y is not None
        _compiled.measure(
            _bytes_of(baseline),
            *kind_x,
            _bytes_of(target),
            *kind_y,
            baseline.size,
            self._length,
            self._wide,
            self._equal_nonfinite,
            rows if rows is not None and baseline.size else _NOTHING,
            _NOTHING if energy is None else energy,
            leaves_out,
            self._state,
            _NOTHING if lines is None else lines,
            _NOTHING if channels is None else channels,
            _NOTHING if taken is None else taken,
            _NOTHING if digests is None else digests,
        )

    def join(self, other: _Compiled, lines: Float) -> None:
        """Add what another pass has found of the next rows, and has put into ``lines``."""
        _compiled.join(self._state, other._state, lines)

    def found(self) -> PairSums:
        baseline, target, *rest = _compiled.sums(self._state)
        return PairSums._make((SideSums(*baseline), SideSums(*target), *rest))


class _Digests:
    """XXH3-64 of both sides."""

    def __init__(self, state: bytearray) -> None:
        self._state = state

    @classmethod
    def begin(cls) -> _Digests | None:
        """None where the processor has no instructions for them."""
        state = _compiled.digests()
        return None if state is None else cls(state)

    def add(self, found: npt.NDArray[np.uint64], blocks: int) -> None:
        """Add what was found of the next blocks of both, but for the last of all."""
        _compiled.digest_blocks(self._state, found, blocks)

    def found(self, baseline: Array, target: Array) -> tuple[int, int]:
        """Of both sides, whose last blocks are looked at now."""
        first, second = (
            _compiled.digest(self._state, at, _bytes_of(side)) for at, side in enumerate((baseline, target))
        )
        return first, second


def _bytes_of(side: Array) -> Array:
    plain = np.ascontiguousarray(side).reshape(-1)
    return (plain if plain.flags.aligned else plain.copy()).view(np.uint8)


class _Reference:
    """A pass in numpy."""

    def __init__(
        self, dtype: np.dtype[Any], dtypes: tuple[np.dtype[Any], np.dtype[Any]], length: int, equal_nonfinite: bool
    ) -> None:
        narrow = dtype == np.float32 and all(map(is_narrow, dtypes))
        woven = narrow and all(one.name == "bfloat16" for one in dtypes)
        self._pass = reference.Pass(dtype, length, equal_nonfinite, narrow, woven)

    def add(self, baseline: Array, target: Array, rows: Float | None, energy: Float | None, **others: object) -> None:
        """See ``Pass``. Nothing is left out, and nothing else is found."""
        del others
        left, right = (np.ascontiguousarray(side).reshape(-1) for side in (baseline, target))
        with np.errstate(all="ignore"):
            self._pass.measure(left, right, rows if left.size else None, energy)

    def join(self, other: _Reference, lines: Float) -> None:
        """Add what another pass has found of the next rows."""
        del lines
        self._pass.join(other._pass)

    def found(self) -> PairSums:
        return self._pass.sums()


_NOTHING = np.empty(0, np.float64)


@functools.cache
def kind_of(dtype: np.dtype[Any]) -> tuple[int, Array | None] | None:
    """What the compiled kernel calls a dtype, and for its kind ``TABLE`` the values of all bytes; None: unknown."""
    if not dtype.isnative:
        return None
    kind = _KINDS.get(dtype.name)
    if kind is not None:
        return kind, None
    if dtype.itemsize != 1 or dtype.names is not None or dtype.kind in "SUmM":
        return None
    return _TABLE, np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)

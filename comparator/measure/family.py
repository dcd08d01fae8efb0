"""The aligned rows of one family over all its steps, and what each row is: what an analysis of whole tensors gets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.align.aligned import Aligned
from comparator.match.bundles import Key
from comparator.measure.kernel.sums import Array, RowTable
from tensortap.lazy_rows import is_lazy, stacked

if TYPE_CHECKING:
    from comparator.diagnosis.kernel import FirstLook, PartSums

Integers = npt.NDArray[np.int64]


class FamilyRows(Struct, frozen=True, eq=False):
    """Both sides of one tensor, tokens first: arrays of shape ``(rows, channels)`` in their own dtypes."""

    family: Key
    """Name and tags: ``(("name", "attn_output"), ("layer_id", "3"))``."""
    baseline: Array
    target: Array
    sequence: Integers | None
    """Per row the number of its sequence, in the order of arrival in the baseline; None where rows have no identity."""
    position: Integers | None
    """Per row the position of its token in the sequence, from 0."""
    step: Integers
    """Per row the forward pass of the target that computed it; -1 outside any."""
    baseline_dims: str | None = None
    target_dims: str | None = None
    look: FirstLook | None = None
    """What measuring the pairs has found of the rows; None where it did not look at single rows and channels."""

    def __len__(self) -> int:
        return len(self.step)

    def take(self, rows: npt.NDArray[np.bool_]) -> FamilyRows:
        """Some of the rows, by a mask."""
        return replace(
            self,
            baseline=_chosen(self.baseline, rows),
            target=_chosen(self.target, rows),
            sequence=None if self.sequence is None else self.sequence[rows],
            position=None if self.position is None else self.position[rows],
            step=self.step[rows],
            look=None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of memory that both sides take."""
        return sum(0 if is_lazy(side) else side.nbytes for side in (self.baseline, self.target))

    @property
    def decode(self) -> npt.NDArray[np.bool_]:
        """Per row whether its token came alone in its forward pass, after others of its sequence."""
        if self.sequence is None or self.position is None:
            return np.zeros(len(self), np.bool_)
        passes = (self.step << 32) + self.sequence
        _, inverse, count = np.unique(passes, return_inverse=True, return_counts=True)
        found: npt.NDArray[np.bool_] = (count[inverse.reshape(-1)] == 1) & (self.position > 0)
        return found


def pool_rows(family: Key, pairs: Sequence[Aligned], tables: Sequence[RowTable | None] = ()) -> FamilyRows | None:
    """The rows of all pairs of a family, one after the other, with what measuring has found of those of each pair.

    Where a pair has no token dimension, rows are its first dimension and have no identity. None where pairs have other
    numbers of channels.
    """
    if not pairs or not all(one.same_shape for one in pairs):
        return None
    baseline = [rows_by_channels(one.baseline, one.plan.row_dimensions) for one in pairs]
    target = [rows_by_channels(one.target, one.plan.row_dimensions) for one in pairs]
    if len({array.shape[1] for array in baseline}) > 1:
        return None
    steps = [_steps_of(one, len(array)) for one, array in zip(pairs, target, strict=True)]
    tokens = [one.tokens for one in pairs if one.tokens is not None and one.plan.row_dimensions]
    known = len(tokens) == len(pairs) and all(one.request is not None and one.position is not None for one in tokens)
    plan = pairs[0].plan
    return FamilyRows(
        family,
        _joined(baseline),
        _joined(target),
        _joined([np.asarray(one.request, np.int64) for one in tokens]) if known else None,
        _joined([np.asarray(one.position, np.int64) for one in tokens]) if known else None,
        _joined(steps),
        plan.baseline.dims.text if plan.baseline.dims else None,
        plan.target.dims.text if plan.target.dims else None,
        _look([table for table in tables if table is not None]) if len(tables) == len(pairs) else None,
    )


def _look(tables: Sequence[RowTable]) -> FirstLook | None:
    from comparator.diagnosis.kernel import look_of_equal, look_of_finite  # of two of SGLang's dumps it is not loaded

    if not tables:
        return None
    columns = _joined([table.columns for table in tables])
    energies = [table.energy for table in tables if table.energy is not None and len(table.energy)]
    differing = columns[:, 5].astype(np.int64)
    if not differing.any():
        return look_of_equal(len(columns))
    if len(energies) < len(tables):
        return None
    return look_of_finite(
        columns[:, :5],
        differing,
        energies[0] if len(energies) == 1 else np.sum(energies, axis=0),
        tuple(_parts(tables)),
    )


def _parts(tables: Sequence[RowTable]) -> Iterator[PartSums]:
    from comparator.diagnosis.kernel import PartSums

    first = 0
    for table in tables:
        for part in table.parts:
            yield PartSums(first + part.rows.start, part.taken, part.sums)
        first += len(table.columns)


def _steps_of(pair: Aligned, rows: int) -> Integers:
    found = pair.plan.row_steps
    if found is not None and len(found) >= rows and pair.plan.row_dimensions:
        return found[:rows]
    steps = {step.step for step in pair.plan.target.steps}
    step = steps.pop() if len(steps) == 1 else None
    return np.full(rows, -1 if step is None else step, np.int64)


def rows_by_channels(array: Array, row_dimensions: tuple[int, ...]) -> Array:
    """An array as ``(rows, channels)``; without row dimensions its first dimension is the rows."""
    if array.ndim == 2 and row_dimensions in ((), (0,)):
        return array
    if array.ndim < 2 and not row_dimensions:
        return array.reshape(1, -1)
    first = row_dimensions or (0,)
    if is_lazy(array) and first == (0,):
        return array.reshape(len(array), array.size // max(1, len(array)))
    moved = np.moveaxis(array, first, tuple(range(len(first))))
    return moved.reshape(math.prod(moved.shape[: len(first)]), math.prod(moved.shape[len(first) :]))


def _joined(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    if any(map(is_lazy, arrays)):
        return stacked(arrays)
    dtype = arrays[0].dtype
    if dtype.isbuiltin == 1 or any(array.dtype != dtype for array in arrays):
        return np.concatenate(arrays)
    # numpy copies types that are not its own (bfloat16) element by element.
    bits = np.dtype(f"u{dtype.itemsize}")
    return np.concatenate([array.view(bits) for array in arrays]).view(dtype)


def _chosen(array: Array, rows: npt.NDArray[np.bool_]) -> Array:
    return array.take(np.flatnonzero(rows)) if is_lazy(array) else array[rows]

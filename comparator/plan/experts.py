"""Bring rows that were sorted by expert back to token order.

Mixture-of-experts layers send each token to several experts and sort the (token, choice) pairs by expert, so that
each expert sees its rows together. Two declarations after ``#`` in dims say how the rows of ``t`` lie:

- ``expert_order:=topk_ids`` (or ``topk_ids/128``): sorted by expert, pairs of one expert in token order. ``topk_ids``
  is the name of a tensor of shape ``(tokens, choices)`` recorded on the same rank in the same step with the same
  tags; 128 the number of experts, needed when ``t`` is split over an expert-parallel axis: each rank then has the
  pairs of its own experts, an equal, consecutive range.
- ``permuted:=pairs`` (or ``pairs/8``): row i is pair ``pairs[i]``, that is choice ``pairs[i] % 8`` of token
  ``pairs[i] // 8``. Every pair must be there once: with rows that pad, record the top-k ids instead.

Either gives a tensor with the dimensions ``t choice ...`` (without ``choice`` when a token has one). Pairs that a
rank does not have are zero there, so an axis that splits ``t`` becomes one to sum over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.align.load import load_array
from comparator.dims import TOKEN, Dimension, Dims, Modifier, RowOrder
from comparator.errors import DimsError, PairError
from comparator.match.pairs import Bundle
from comparator.match.runs import RecordView, RunView

CHOICE = "choice"
"""Name of the dimension that counts the experts of a token."""

Key = tuple[str, int | None, int, tuple[tuple[str, str], ...]]
Coordinates = Mapping[str, tuple[int, int]]


class Companions:
    """Finds the tensor that says how the rows of another lie."""

    def __init__(self, run: RunView) -> None:
        self._run = run
        self._index: dict[Key, RecordView] | None = None

    def of(self, record: RecordView, name: str) -> RecordView:
        """The record called ``name`` beside ``record``; raises PairError when there is none."""
        if self._index is None:
            self._index = {_key(one, one.name): one for one in self._run.records if one.kind == "tensor"}
        found = self._index.get(_key(record, name))
        if found is None:
            raise PairError(
                f"the dims of {record.name} name {name!r}, which rank {record.rank} did not record in step "
                f"{record.step} with the same tags",
                hint=f"record {name!r} beside it",
            )
        return found


def _key(record: RecordView, name: str) -> Key:
    tags = tuple(sorted((key, str(value)) for key, value in record.tags.items()))
    return name, record.step, record.rank, tags


class TokenOrdered:
    """A record in token order; its shape is ``(tokens, choices, ...)``."""

    def __init__(
        self, record: RecordView, companion: RecordView, order: RowOrder, split: Sequence[tuple[int, int]]
    ) -> None:
        self._record = record
        self._companion = companion
        self._order = order
        self._split = split

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    @property
    def shape(self) -> tuple[int, ...]:
        rows = tuple(self._companion.shape or ())
        rest = tuple(self._record.shape or ())[1:]
        if self._order.kind == "experts":
            return (*rows[:2], *rest)
        choices = self._order.count or 1
        tokens = (rows[0] if rows else 0) // choices
        return (tokens, *((choices,) if choices > 1 else ()), *rest)

    def array(self) -> npt.NDArray[Any]:
        array = self._record.array()
        companion = load_array(self._companion)
        shape = self.shape
        pairs = int(np.prod(shape[: len(shape) - array.ndim + 1]))
        if self._order.kind == "experts":
            source = self._pairs_by_expert(companion.reshape(-1).astype(np.int64))
        else:
            source = companion.reshape(-1).astype(np.int64)
            if not np.array_equal(np.sort(source), np.arange(pairs)):
                raise PairError(f"{self._companion.name} is no permutation of the {pairs} rows of {self._record.name}")
        if len(source) != len(array):
            raise PairError(
                f"{self._record.name} has {len(array)} rows on rank {self._record.rank}, but {self._companion.name} "
                f"accounts for {len(source)}",
                hint="give the number of experts, expert_order:=NAME/EXPERTS, when each rank has its own experts",
            )
        result = np.zeros((pairs, *array.shape[1:]), dtype=array.dtype)
        result[source] = array
        return result.reshape(shape)

    def _pairs_by_expert(self, experts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Pairs in the order of the rows: by expert, then by pair; only of the rank's own experts."""
        count = self._order.count
        first, last = 0, count if count is not None else int(experts.max(initial=-1)) + 1
        for rank, size in self._split:
            if count is None:
                raise PairError(
                    f"the rows of {self._record.name} are split by expert; how many experts there are is not said",
                    hint="write expert_order:=NAME/EXPERTS",
                )
            each = (last - first) // size
            first, last = first + rank * each, first + (rank + 1) * each
        local = np.flatnonzero((experts >= first) & (experts < last))
        return local[np.argsort(experts[local], kind="stable")]


def in_token_order(
    bundle: Bundle, dims: Dims, companions: Companions, world: Mapping[int, Coordinates]
) -> tuple[Bundle, Dims]:
    """The bundle and its dims with rows in token order; raises DimsError unless ``t`` comes first."""
    order = dims.row_order
    assert order is not None
    first = dims.dimensions[0]
    if first.names != (TOKEN,):
        raise DimsError(f"rows in another order are those of a first dimension t, which dims {dims.text!r} do not have")
    axes = [modifier.axis for modifier in first.modifiers]

    def ordered(record: RecordView) -> Any:
        dims.check_shape(tuple(record.shape or ()))
        split = [world.get(record.rank, {}).get(axis, (0, 1)) for axis in axes]
        return TokenOrdered(record, companions.of(record, order.name), order, split)

    summed = tuple(Modifier(axis, partial=True) for axis in axes)
    several = order.kind == "experts" or (order.count or 1) > 1
    choice = (Dimension((CHOICE,)),) if several else ()
    changed = replace(dims, dimensions=(Dimension((TOKEN,), summed), *choice, *dims.dimensions[1:]), row_order=None)
    records = tuple(ordered(record) for record in bundle.records)
    history = tuple(ordered(record) for record in bundle.history)
    return replace(bundle, records=records, history=history), changed

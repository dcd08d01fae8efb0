"""Bring rows that were sorted by expert back to token order; ``comparator.plan.experts`` explains both kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from comparator.align.load import load_array
from comparator.align.rows import Array
from comparator.errors import PairError
from comparator.match.entries import Entry
from comparator.plan.experts import TokenOrder, ordered_shape


def order_rows(array: Array, entry: Entry, companion: Entry, order: TokenOrder, split: Sequence[tuple[int, int]]) -> (
    Array
):  # fmt: skip
    """``array``, the value of ``entry``, with its rows in token order: shape ``(tokens, choices, ...)``.

    ``split`` gives ``(rank, size)`` of the entry's rank on every axis over which the experts are split. Raises
    PairError when the companion does not account for the rows.
    """
    places = load_array(companion)
    shape = ordered_shape(order.order, array.shape, places.shape)
    pairs = int(np.prod(shape[: len(shape) - array.ndim + 1]))
    flat = places.reshape(-1).astype(np.int64)
    if order.order.kind == "experts":
        source = _pairs_by_expert(flat, entry, order.order.count, split)
    else:
        source = flat
        if not np.array_equal(np.sort(source), np.arange(pairs)):
            raise PairError(f"{companion.name} is no permutation of the {pairs} rows of {entry.name}")
    if len(source) != len(array):
        raise PairError(
            f"{entry.name} has {len(array)} rows on rank {entry.rank}, but {companion.name} accounts for {len(source)}",
            hint="give the number of experts, expert_order:=NAME/EXPERTS, when each rank has its own experts",
        )
    result = np.zeros((pairs, *array.shape[1:]), dtype=array.dtype)
    result[source] = array
    return result.reshape(shape)


def _pairs_by_expert(
    experts: npt.NDArray[np.int64], entry: Entry, count: int | None, split: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """Pairs in the order of the rows: by expert, then by pair; only of the rank's own experts."""
    first, last = 0, count if count is not None else int(experts.max(initial=-1)) + 1
    for rank, size in split:
        if count is None:
            raise PairError(
                f"the rows of {entry.name} are split by expert; how many experts there are is not said",
                hint="write expert_order:=NAME/EXPERTS",
            )
        each = (last - first) // size
        first, last = first + rank * each, first + (rank + 1) * each
    local = np.flatnonzero((experts >= first) & (experts < last))
    return local[np.argsort(experts[local], kind="stable")]

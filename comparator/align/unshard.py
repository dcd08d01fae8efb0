"""Carry out an unshard plan on arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from msgspec import Struct

from comparator.align.adding import add_halves
from comparator.align.rearrange import Array, Rows, joined, merge_rows, slice_of, take_rows
from comparator.plan.operations import Operation, UnshardPlan, zigzag_order
from tensortap.dims import count_rows
from tensortap.lazy_rows import computed, is_lazy

_FEW, _REGISTER = 16, 64
"""Summands that torch adds one after the other, in float32, where there are so many elements of half precision; what
more there are it adds in cascades: each so many by themselves, then their sums (``ATen/native/cpu/SumKernel.cpp``)."""
_COLUMNS, _MOST = 32, 256
"""Elements that torch adds at a time in this order: of what is no multiple of them it adds the rest in another one.
From so many summands on there are more cascades than two."""


class Replicas(Struct, frozen=True):
    """Arrays over one axis that should be the same; the first one is used."""

    axis: str
    group: int
    """Number of the group among those that the axis makes."""
    members: tuple[Array, ...]
    """Only the rows that will be compared, where all members have the same shape."""


def unshard(
    plan: UnshardPlan,
    arrays: Sequence[Array],
    *,
    token_dimensions: tuple[int, ...] = (),
    rows: Sequence[Rows | None] | None = None,
    visit: Callable[[Replicas], None] | None = None,
    rounding: Literal["float64", "torch"] = "float64",
) -> tuple[Array, ...]:
    """Apply the operations of ``plan`` to the arrays of its ranks, given in the order of ``plan.ranks``.

    Returns arrays in the order of the plan's parts. ``visit`` is called with every group of replicas, whose arrays are
    let go afterwards; ``rows`` gives per part the rows along ``token_dimensions`` that will be compared (None: all),
    and the replicas are cut to these. ``rounding`` says how summands are added.
    """
    current = list(arrays)
    for operation, owner in zip(plan.operations, _owners(plan), strict=True):
        if operation.kind == "pick" and visit is not None:
            used = [None if rows is None else rows[part] for part in owner]
            totals = [count_rows(plan.parts[part].shape, token_dimensions) for part in owner]
            for replicas in _replicas(operation, current, token_dimensions, used, totals):
                visit(replicas)
        current = [_combine(operation, [current[index] for index in group], rounding) for group in operation.groups]
    return tuple(current)


def _owners(plan: UnshardPlan) -> list[list[int]]:
    """Per operation and group the part that the group ends in."""
    after = list(range(len(plan.parts)))
    found: list[list[int]] = []
    for operation in reversed(plan.operations):
        found.append(after)
        before = [0] * sum(len(group) for group in operation.groups)
        for number, group in enumerate(operation.groups):
            for index in group:
                before[index] = after[number]
        after = before
    return found[::-1]


def _combine(operation: Operation, members: Sequence[Array], rounding: Literal["float64", "torch"]) -> Array:
    if operation.kind == "undo_zigzag":
        return undo_zigzag(members[0], operation.dimension, operation.axis_size, operation.sequence_lengths)
    if operation.kind == "sum" and rounding == "torch":
        # Also of one summand: integers become wider.
        return _sum_as_torch(members)
    if len(members) == 1 or operation.kind == "pick":
        return members[0]
    if operation.kind == "sum":
        return sum_partials(members)
    if operation.kind == "concatenate_sequences":
        return _concatenate_sequences(members, operation.dimension, operation.sequence_lengths, operation.axis_size)
    return joined(members, operation.dimension)


def sum_partials(members: Sequence[Array]) -> Array:
    """Add summands as an all-reduce does: half precisions in float32, rounded once at the end."""
    dtype = members[0].dtype
    wide = accumulation_dtype(dtype)
    if any(map(is_lazy, members)):
        found = wide if np.issubdtype(wide, np.integer) else dtype
        return computed(members, lambda *rows: sum_partials(rows), members[0].shape, found)
    halves = add_halves(members, from_zero=False)
    if halves is not None:
        return halves
    total = members[0].astype(wide)
    for member in members[1:]:
        total += member.astype(wide, copy=False)
    return total if np.issubdtype(wide, np.integer) else total.astype(dtype, copy=False)


def _sum_as_torch(members: Sequence[Array]) -> Array:
    """Add summands in their own dtype, as ``torch.stack(...).sum(0)`` rounds."""
    if len(members) < _FEW and members[0].size >= _REGISTER:
        found = add_halves(members, from_zero=True)
        if found is not None:
            return found
    dtype = members[0].dtype
    if _is_added_in_cascades(members):
        return _in_cascades(members)
    import torch

    if dtype.name == "bfloat16":
        bits = np.stack([np.ascontiguousarray(member).view(np.int16) for member in members])
        halves = torch.from_numpy(bits).view(torch.bfloat16).sum(dim=0)
        return halves.view(torch.int16).numpy().view(dtype)
    # Stacked by numpy: torch warns of arrays that are mapped, which cannot be written to.
    return torch.from_numpy(np.stack(members)).sum(dim=0).numpy()


def _is_added_in_cascades(members: Sequence[Array]) -> bool:
    first = members[0]
    return (
        first.dtype.name in ("bfloat16", "float16", "float32")
        and first.size % _COLUMNS == 0
        and len(members) < _MOST
        and all(member.shape == first.shape and member.dtype == first.dtype for member in members)
    )


def _in_cascades(members: Sequence[Array]) -> Array:
    """Added in float32."""
    total, run = (np.zeros(members[0].shape, np.float32) for _ in range(2))
    with np.errstate(all="ignore"):
        for number, member in enumerate(members, 1):
            run += member
            if number % _FEW == 0:
                total += run
                run[...] = 0
        run += total
        return run.astype(members[0].dtype, copy=False)


def accumulation_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which summands of ``dtype`` are added."""
    if dtype.kind in "iub":
        return np.dtype(np.int64)
    if dtype.kind == "c":
        return np.dtype(np.complex128) if dtype.itemsize > 8 else np.dtype(np.complex64)
    return np.dtype(np.float64) if dtype.itemsize >= 8 else np.dtype(np.float32)


def undo_zigzag(array: Array, dimension: int, size: int, lengths: Sequence[int] = ()) -> Array:
    """Bring a dimension in zigzag order over ``size`` ranks back to natural order.

    Without ``lengths`` the dimension is one sequence; with them, each sequence was split by itself and rows after
    the last one (padding) stay.
    """
    total = array.shape[dimension]
    pieces: list[Array] = []
    at = 0
    for length in lengths or (total,):
        for start, stop in zigzag_order(length, size):
            pieces.append(slice_of(array, dimension, at + start, at + stop))
        at += length
    if at < total:
        pieces.append(slice_of(array, dimension, at, total))
    return joined(pieces, dimension)


def _concatenate_sequences(members: Sequence[Array], dimension: int, lengths: Sequence[int], size: int) -> Array:
    """Put the pieces of each sequence side by side; every member holds a piece of each, then padding."""
    pieces: list[Array] = []
    at = 0
    for length in lengths:
        rows = length // size
        pieces.extend(slice_of(member, dimension, at, at + rows) for member in members)
        at += rows
    pieces.extend(slice_of(member, dimension, at, member.shape[dimension]) for member in members)
    return joined(pieces, dimension)


def _replicas(
    operation: Operation,
    arrays: Sequence[Array],
    token_dimensions: tuple[int, ...],
    used: Sequence[Rows | None],
    totals: Sequence[int],
) -> Iterator[Replicas]:
    for number, group in enumerate(operation.groups):
        members = [arrays[index] for index in group]
        rows = used[number]
        whole = count_rows(members[0].shape, token_dimensions) == totals[number]
        same_shape = all(member.shape == members[0].shape for member in members)
        if rows is not None and whole and token_dimensions and same_shape:
            members = [_rows_of(member, token_dimensions, rows) for member in members]
        yield Replicas(operation.axis, number, tuple(members))


def _rows_of(array: Array, token_dimensions: tuple[int, ...], rows: Rows) -> Array:
    if len(token_dimensions) == 1:
        return take_rows(array, rows, token_dimensions[0])
    return take_rows(merge_rows(array, (token_dimensions[0], token_dimensions[1])), rows, min(token_dimensions))

"""Carry out an unshard plan on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comparator.align.rows import Array, Rows, count_rows, merge_rows, take_rows
from comparator.measure.difference import Difference, measure, same_bytes
from comparator.plan.unshard import Operation, UnshardPlan, zigzag_order

REPLICA_TOLERANCE = 1e-6
"""Largest absolute difference between replicas that still counts as the same (SGLang's comparator uses it)."""


@dataclass(frozen=True)
class ReplicaDifference:
    """How one replica compares with the one that is used."""

    axis: str
    group: int
    index: int
    """Position of the replica in its group; the first one (0) is used."""
    passed: bool
    difference: Difference | None
    """None when the shapes differ."""


@dataclass(frozen=True)
class Unsharded:
    """Arrays in the order of the plan's parts, and how the replicas agreed."""

    arrays: tuple[Array, ...]
    replicas: tuple[ReplicaDifference, ...]


def unshard(
    plan: UnshardPlan,
    arrays: Sequence[Array],
    *,
    token_dimensions: tuple[int, ...] = (),
    rows: Sequence[Rows | None] | None = None,
) -> Unsharded:
    """Apply the operations of ``plan`` to the arrays of its ranks, given in the order of ``plan.ranks``.

    ``rows`` gives per part the rows along ``token_dimensions`` that will be compared (None: all); replicas are
    checked there only.
    """
    current = list(arrays)
    replicas: list[ReplicaDifference] = []
    owners = _owners(plan)
    for operation, owner in zip(plan.operations, owners, strict=True):
        if operation.kind == "pick":
            used = [None if rows is None else rows[part] for part in owner]
            totals = [count_rows(plan.parts[part].shape, token_dimensions) for part in owner]
            replicas.extend(_check_replicas(operation, current, token_dimensions, used, totals))
        current = [_combine(operation, [current[index] for index in group]) for group in operation.groups]
    return Unsharded(tuple(current), tuple(replicas))


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


def _combine(operation: Operation, members: Sequence[Array]) -> Array:
    if operation.kind == "undo_zigzag":
        return undo_zigzag(members[0], operation.dimension, operation.axis_size, operation.sequence_lengths)
    if len(members) == 1 or operation.kind == "pick":
        return members[0]
    if operation.kind == "sum":
        return sum_partials(members)
    if operation.kind == "concatenate_sequences":
        return _concatenate_sequences(members, operation.dimension, operation.sequence_lengths, operation.axis_size)
    return np.concatenate(members, axis=operation.dimension)


def sum_partials(members: Sequence[Array]) -> Array:
    """Add summands as an all-reduce does: half precisions in float32, rounded once at the end."""
    dtype = members[0].dtype
    wide = accumulation_dtype(dtype)
    total = members[0].astype(wide)
    for member in members[1:]:
        total += member.astype(wide, copy=False)
    return total if np.issubdtype(wide, np.integer) else total.astype(dtype, copy=False)


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
            pieces.append(_slice(array, dimension, at + start, at + stop))
        at += length
    if at < total:
        pieces.append(_slice(array, dimension, at, total))
    return np.concatenate(pieces, axis=dimension)


def _concatenate_sequences(members: Sequence[Array], dimension: int, lengths: Sequence[int], size: int) -> Array:
    """Put the pieces of each sequence side by side; every member holds a piece of each, then padding."""
    pieces: list[Array] = []
    at = 0
    for length in lengths:
        rows = length // size
        pieces.extend(_slice(member, dimension, at, at + rows) for member in members)
        at += rows
    pieces.extend(_slice(member, dimension, at, member.shape[dimension]) for member in members)
    return np.concatenate(pieces, axis=dimension)


def _slice(array: Array, dimension: int, start: int, stop: int) -> Array:
    index: list[slice] = [slice(None)] * array.ndim
    index[dimension] = slice(start, stop)
    return array[tuple(index)]


def _check_replicas(
    operation: Operation,
    arrays: Sequence[Array],
    token_dimensions: tuple[int, ...],
    used: Sequence[Rows | None],
    totals: Sequence[int],
) -> list[ReplicaDifference]:
    found: list[ReplicaDifference] = []
    for number, group in enumerate(operation.groups):
        members = [arrays[index] for index in group]
        rows = used[number]
        whole = count_rows(members[0].shape, token_dimensions) == totals[number]
        same_shape = [member.shape == members[0].shape for member in members]
        if rows is not None and whole and token_dimensions and all(same_shape):
            members = [_rows_of(member, token_dimensions, rows) for member in members]
        for index, other in enumerate(members[1:], start=1):
            if not same_shape[index]:
                found.append(ReplicaDifference(operation.axis, number, index, False, None))
                continue
            difference = measure(members[0], other)
            passed = difference.max_abs <= REPLICA_TOLERANCE or same_bytes(members[0], other)
            found.append(ReplicaDifference(operation.axis, number, index, passed, difference))
    return found


def _rows_of(array: Array, token_dimensions: tuple[int, ...], rows: Rows) -> Array:
    if len(token_dimensions) == 1:
        return take_rows(array, rows, token_dimensions[0])
    return take_rows(merge_rows(array, (token_dimensions[0], token_dimensions[1])), rows, min(token_dimensions))

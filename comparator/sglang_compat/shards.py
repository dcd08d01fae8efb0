"""One tensor of one step from the files of its ranks, by SGLang's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.align.unshard import REPLICA_TOLERANCE, ReplicaDifference
from comparator.dims import TOKEN, Dims, Modifier
from comparator.errors import PairError
from comparator.sglang_compat.measures import difference_in_single, sum_partials
from comparator.sglang_compat.places import Place, check_declared

Array = npt.NDArray[Any]


@dataclass
class _Pile:
    """The arrays that are left, and where each stands on the axes that still tell them apart."""

    arrays: list[Array]
    positions: list[Mapping[str, int]]
    replicas: list[ReplicaDifference] = field(default_factory=list)


def join_shards(
    arrays: Sequence[Array],
    places: Sequence[Place],
    dims: Dims,
    *,
    data_parallel_axis: str,
    sequence_lengths: Sequence[int] | None,
) -> tuple[Array, list[ReplicaDifference]] | None:
    """Unshard several ranks' arrays; None when dims name no axis that tells them apart.

    ``sequence_lengths`` are the rows per sequence of the whole token dimension, where they are known. Raises
    PairError when dims and places do not fit, ValueError when shapes do not.
    """
    replicated, split = check_declared(dims, places, data_parallel_axis)
    if not replicated and not split:
        return None
    pile = _Pile(list(arrays), [{axis: place[axis][0] for axis in {*replicated, *split}} for place in places])
    for axis in replicated:
        _pick(pile, axis)
    for position, dimension in enumerate(dims.dimensions):
        for modifier in reversed(dimension.modifiers):
            if modifier.axis in split:
                packed = dimension.names == (TOKEN,) and modifier.axis == "cp"
                size = places[0][modifier.axis][1]
                _join(pile, modifier, position, size, sequence_lengths if packed else None)
    _undo_zigzags(pile, dims, places[0], sequence_lengths)
    if len(pile.arrays) != 1:
        raise PairError(f"dims {dims.text!r} leave {len(pile.arrays)} tensors where there must be one")
    return pile.arrays[0], pile.replicas


def _groups(pile: _Pile, axis: str) -> list[list[int]]:
    buckets: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for index, position in enumerate(pile.positions):
        if axis not in position:
            raise PairError(f"dims use the axis {axis} for more than one dimension")
        buckets.setdefault(tuple(sorted((name, at) for name, at in position.items() if name != axis)), []).append(index)
    ordered = [sorted(buckets[key], key=lambda index: (pile.positions[index][axis], index)) for key in sorted(buckets)]
    pile.positions = [dict(key) for key in sorted(buckets)]
    return ordered


def _pick(pile: _Pile, axis: str) -> None:
    kept: list[Array] = []
    for number, group in enumerate(_groups(pile, axis)):
        first, *others = (pile.arrays[index] for index in group)
        for index, other in enumerate(others, start=1):
            if other.shape != first.shape:
                pile.replicas.append(ReplicaDifference(axis, number, index, False, None))
                continue
            found = difference_in_single(first, other)
            pile.replicas.append(ReplicaDifference(axis, number, index, found.max_abs <= REPLICA_TOLERANCE, found))
        kept.append(first)
    pile.arrays = kept


def _join(pile: _Pile, modifier: Modifier, dimension: int, size: int, lengths: Sequence[int] | None) -> None:
    groups = _groups(pile, modifier.axis)
    members = [[pile.arrays[index] for index in group] for group in groups]
    if modifier.partial:
        pile.arrays = [sum_partials(group) for group in members]
    elif lengths is None:
        pile.arrays = [np.concatenate(group, axis=dimension) for group in members]
    else:
        uneven = [length for length in lengths if length % size]
        if uneven:
            raise PairError(f"a sequence of {uneven[0]} tokens cannot be split evenly over {modifier.axis} ({size})")
        pile.arrays = [_join_sequences(group, dimension, [length // size for length in lengths]) for group in members]


def _join_sequences(group: Sequence[Array], dimension: int, lengths: Sequence[int]) -> Array:
    """Each sequence's pieces side by side; what is left at the end (padding) as it lies, rank after rank."""
    if sum(lengths) > group[0].shape[dimension]:
        raise PairError(
            f"the sequences have {sum(lengths)} rows on each rank, and the tensor {group[0].shape[dimension]}"
        )
    if len({array.shape[dimension] for array in group}) > 1:
        raise PairError("the pieces of packed sequences have other numbers of rows from rank to rank")
    bounds = np.cumsum(lengths).tolist()
    pieces = [np.split(array, bounds, axis=dimension) for array in group]
    return np.concatenate([piece for sequence in zip(*pieces, strict=True) for piece in sequence], axis=dimension)


def _undo_zigzags(pile: _Pile, dims: Dims, place: Place, lengths: Sequence[int] | None) -> None:
    for position, dimension in enumerate(dims.dimensions):
        for modifier in dimension.modifiers:
            if modifier.ordering != "zigzag":
                continue
            if dimension.names not in (("t",), ("s",)):
                raise PairError(f"zigzag is for the dimensions s and t, not for {dimension.label!r}")
            if modifier.axis not in place:
                raise PairError(
                    f"dims {dims.text!r} have a zigzag order over {modifier.axis}, which has one rank only",
                    hint=f"leave out the modifier {modifier.axis}:zigzag on this side",
                )
            size = place[modifier.axis][1]
            if dimension.names == (TOKEN,) and lengths is None:
                raise PairError(
                    f"packed tokens in zigzag order over {modifier.axis} need the lengths of their sequences",
                    hint="compare with --token-aligner and dumps that hold seq_lens or cu_seqlens_q",
                )
            spans = list(lengths or ()) if dimension.names == (TOKEN,) else None
            pile.arrays = [_natural(array, position, size, spans) for array in pile.arrays]


def _natural(array: Array, dimension: int, size: int, lengths: Sequence[int] | None) -> Array:
    """Undo the zigzag order of each sequence; rows after the last one stay."""
    total = array.shape[dimension]
    if lengths is not None and sum(lengths) > total:
        raise PairError(f"the sequences have {sum(lengths)} rows, and the tensor {total}")
    spans = [total] if lengths is None else list(lengths)
    segments = np.split(array, np.cumsum(spans).tolist(), axis=dimension)
    natural = [_natural_sequence(segment, dimension, size) for segment in segments[: len(spans)]]
    return np.concatenate([*natural, *segments[len(spans) :]], axis=dimension)


def _natural_sequence(segment: Array, dimension: int, size: int) -> Array:
    count = 2 * size
    length = segment.shape[dimension]
    rows = -(-length // count) if length else 0
    chunks = np.split(segment, [rows * number for number in range(1, count)], axis=dimension)
    if rows * (count - 1) >= length and length:
        raise PairError(f"a sequence of {length} rows does not make {count} chunks")
    order = [*range(0, count, 2), *range(count - 1, 0, -2)]
    return np.concatenate([chunks[number] for number in order], axis=dimension)

"""Plan how shards become one tensor in the order of SGLang's comparator, from dims and coordinates alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from comparator.errors import PairError
from comparator.plan.joining import Array, Joining
from comparator.plan.operations import Part, Shard, UnshardPlan
from tensortap.dims import SEQUENCE, TOKEN, Dims


def plan_in_file_order(
    dims: Dims, shards: Sequence[Shard], replicated: Sequence[str], sequence_lengths: Sequence[int] | None
) -> UnshardPlan:
    """Plan how ``shards`` become one array as SGLang's comparator does it: replicas first, then the dimensions one
    after the other, and zigzag orders put right at the end.

    The coordinates of the shards are on the axes that ``replicated`` and the dims name, and no others. Packed tokens
    are joined sequence by sequence over ``cp`` where ``sequence_lengths`` are known. Raises PairError when one array
    cannot be made.
    """
    sizes = {axis: size for shard in shards for axis, (_, size) in shard.coordinates.items()}
    arrays = [Array(one.shape, {axis: at for axis, (at, _) in one.coordinates.items()}, (one.rank,)) for one in shards]
    world = {shard.rank: shard.coordinates for shard in shards}
    joining = Joining(dims, (), world, (), sizes, arrays, told_apart=False)
    for axis in replicated:
        joining.apply("pick", axis)
    for dimension, spec in enumerate(dims.dimensions):
        for modifier in reversed(spec.modifiers):
            axis = modifier.axis
            if axis not in sizes:
                continue
            if modifier.partial:
                joining.apply("sum", axis)
            elif sequence_lengths is not None and spec.names == (TOKEN,) and axis == "cp":
                _check_sequences(joining.arrays, dimension, axis, sizes[axis], sequence_lengths)
                joining.apply("concatenate_sequences", axis, dimension, tuple(sequence_lengths))
            else:
                joining.apply("concatenate", axis, dimension)
    for dimension, spec in enumerate(dims.dimensions):
        for modifier in spec.modifiers:
            if modifier.ordering == "zigzag":
                _undo_zigzag_at_last(joining, modifier.axis, dimension, sequence_lengths)
    if len(joining.arrays) != 1:
        raise PairError(f"dims {dims.text!r} leave {len(joining.arrays)} tensors where there must be one")
    (whole,) = joining.arrays
    ranks = tuple(shard.rank for shard in shards)
    return UnshardPlan(ranks, tuple(joining.operations), (Part((), whole.ranks[0], whole.shape),))


def _check_sequences(
    arrays: Sequence[Array], dimension: int, axis: str, size: int, sequence_lengths: Sequence[int]
) -> None:
    uneven = [length for length in sequence_lengths if length % size]
    if uneven:
        raise PairError(f"a sequence of {uneven[0]} tokens cannot be split evenly over {axis} ({size})")
    rows = {array.shape[dimension] for array in arrays}
    if len(rows) > 1:
        raise PairError("the pieces of packed sequences have other numbers of rows from rank to rank")
    each = sum(length // size for length in sequence_lengths)
    if each > min(rows):
        raise PairError(f"the sequences have {each} rows on each rank, and the tensor {min(rows)}")


def _undo_zigzag_at_last(joining: Joining, axis: str, dimension: int, sequence_lengths: Sequence[int] | None) -> None:
    """Put a zigzag order right in what is whole already; raises PairError where that cannot be."""
    spec = joining.dims.dimensions[dimension]
    if spec.names not in ((TOKEN,), (SEQUENCE,)):
        raise PairError(f"zigzag is for the dimensions s and t, not for {spec.label!r}")
    if axis not in joining.sizes:
        raise PairError(
            f"dims {joining.dims.text!r} have a zigzag order over {axis}, which has one rank only",
            hint=f"leave out the modifier {axis}:zigzag on this side",
        )
    packed = spec.names == (TOKEN,)
    if packed and sequence_lengths is None:
        raise PairError(
            f"packed tokens in zigzag order over {axis} need the lengths of their sequences",
            hint="compare with --token-aligner and dumps that hold seq_lens or cu_seqlens_q",
        )
    lengths = tuple(sequence_lengths or ()) if packed else ()
    chunks = 2 * joining.sizes[axis]
    for array in joining.arrays:
        total = array.shape[dimension]
        if sum(lengths) > total:
            raise PairError(f"the sequences have {sum(lengths)} rows, and the tensor {total}")
        for length in lengths or (total,):
            if length and math.ceil(length / chunks) * (chunks - 1) >= length:
                raise PairError(f"a sequence of {length} rows does not make {chunks} chunks")
    joining.undo_zigzag(axis, dimension, lengths)

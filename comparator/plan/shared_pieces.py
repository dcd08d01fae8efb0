"""Pieces that neighbouring ranks share, although the dims only say that the dimension is split.

With more tensor-parallel ranks than heads of keys and values, frameworks give the same head to several ranks in a
row: of 4 ranks with 2 heads, ranks 0 and 1 hold the first. Concatenated, the dimension comes out too long by a whole
factor. Where it does, and the other side is shorter by just that factor, neighbours are taken as replicas (and
checked to be) before the pieces are put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from comparator.plan.axes import VOCABULARY, SideAxes, aligned_shape
from comparator.plan.operations import Coordinates, Shard
from tensortap.dims import SEQUENCE, TOKEN, Dims

Sharing = Mapping[str, int]
"""Axis to the number of neighbouring ranks that hold the same piece."""


def neighbours_of(axis: str) -> str:
    """Name of the axis that tells neighbours on ``axis`` apart."""
    return f"{axis} neighbours"


def find_sharing(
    shapes: tuple[Sequence[int], Sequence[int]],
    axes: tuple[SideAxes, SideAxes],
    dims: tuple[Dims, Dims],
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
    result: Sequence[str],
) -> tuple[Sharing, Sharing]:
    """Per side the sharing that would explain why lengths differ by a whole factor; empty when nothing does.

    ``shapes`` are those before the axes are aligned, ``sizes`` those of the parallel axes, ``result`` the dimensions
    of the aligned tensors.
    """
    lengths = [aligned_shape(shape, side) for shape, side in zip(shapes, axes, strict=True)]
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for name, left, right in zip(result, *lengths, strict=True):
        if left == right or name in (TOKEN, SEQUENCE, VOCABULARY) or min(left, right) == 0:
            continue
        longer = 0 if left > right else 1
        factor, rest = divmod(max(left, right), min(left, right))
        splitting = [
            modifier.axis
            for dimension in dims[longer].dimensions
            if set(dimension.names) & set(name.split("*"))
            for modifier in dimension.modifiers
            if not modifier.partial and sizes[longer].get(modifier.axis, 1) > 1
        ]
        if rest == 0 and len(splitting) == 1 and sizes[longer][splitting[0]] % factor == 0:
            found[longer][splitting[0]] = factor
    return found


def apart(dims: Dims, shards: Sequence[Shard], world: Mapping[int, Coordinates], sharing: Sharing) -> tuple[
    Dims, list[Shard], dict[int, Coordinates]
]:  # fmt: skip
    """Dims and coordinates in which neighbours that share a piece are replicas on an axis of their own."""
    changed = replace(dims, replicated=dims.replicated | {neighbours_of(axis) for axis in sharing})
    moved = [replace(shard, coordinates=_split(shard.coordinates, sharing)) for shard in shards]
    return changed, moved, {rank: _split(coordinates, sharing) for rank, coordinates in world.items()}


def _split(coordinates: Coordinates, sharing: Sharing) -> dict[str, tuple[int, int]]:
    found = dict(coordinates)
    for axis, factor in sharing.items():
        if axis in found:
            rank, size = found[axis]
            found[axis] = (rank // factor, size // factor)
            found[neighbours_of(axis)] = (rank % factor, factor)
    return found

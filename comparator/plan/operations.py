"""The operations by which the shards of a tensor become whole, and a plan of them.

Each brings together arrays that differ in their coordinate on one axis: replicas are picked, summands added, pieces
concatenated; or it puts rows in zigzag order right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from dumper.layout import zigzag_blocks

Coordinates = Mapping[str, tuple[int, int]]
"""Axis to ``(rank, size)``."""
OperationKind = Literal["pick", "sum", "concatenate", "concatenate_sequences", "undo_zigzag"]
Shape = tuple[int, ...]


class Shard(Struct, frozen=True):
    """One rank's array."""

    rank: int
    shape: Shape
    coordinates: Coordinates


class Operation(Struct, frozen=True):
    """One step of a plan: each group of arrays becomes one array."""

    kind: OperationKind
    axis: str
    groups: tuple[tuple[int, ...], ...]
    """Indices into the arrays as they are before the operation, in the order of the axis."""
    dimension: int = 0
    """The dimension that pieces are concatenated along; unused by pick and sum."""
    sequence_lengths: tuple[int, ...] = ()
    """Rows per sequence of the whole dimension, when sequences are split one by one (packed tokens); empty when
    the dimension is one sequence."""
    axis_size: int = 1
    shapes_before: tuple[Shape, ...] = ()
    shapes_after: tuple[Shape, ...] = ()


class Part(Struct, frozen=True):
    """One array that a plan leaves."""

    coordinates: tuple[tuple[str, int], ...]
    """Coordinates on the token axes."""
    rank: int
    """The lowest rank that contributed."""
    shape: Shape


class UnshardPlan(Struct, frozen=True):
    """Operations on the arrays of ``ranks``, in order, and what they leave."""

    ranks: tuple[int, ...]
    operations: tuple[Operation, ...]
    parts: tuple[Part, ...]


def zigzag_order(length: int, size: int) -> list[tuple[int, int]]:
    """The row ranges of a sequence in zigzag order over ``size`` ranks, in natural order.

    Rank after rank, the chunks (``dumper.layout.zigzag_blocks``) lie as 0, 2n-1, 1, 2n-2, ... Chunks have
    ``ceil(length / 2n)`` rows, the last ones fewer.
    """
    count = 2 * size
    rows = math.ceil(length / count) if length else 0
    lies_as = [chunk for rank in range(size) for chunk in zigzag_blocks(rank, size)]
    starts: dict[int, tuple[int, int]] = {}
    at = 0
    for chunk in lies_as:
        chunk_rows = max(0, min(rows, length - chunk * rows))
        starts[chunk] = (at, at + chunk_rows)
        at += chunk_rows
    return [starts[chunk] for chunk in range(count)]

"""Plan how the shards of one tensor in one step become whole tensors, from dims and coordinates alone.

Every operation brings together arrays that differ in their coordinate on one axis: replicas are picked,
summands added, pieces concatenated. Arrays that agree on all axes named in the dims, and yet are several, differ
in an axis that the dims do not explain; that is an error. An axis that follows from others (``ep`` where ``tp``
determines it) never tells arrays apart and so needs no declaration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from comparator.errors import PairError
from dumper.layout import zigzag_blocks
from tensortap.dims import SEQUENCE, TOKEN, Dims, DimsError, Modifier

Coordinates = Mapping[str, tuple[int, int]]
"""Axis to ``(rank, size)``."""
OperationKind = Literal["pick", "sum", "concatenate", "concatenate_sequences", "undo_zigzag"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One rank's array."""

    rank: int
    shape: Shape
    coordinates: Coordinates


@dataclass(frozen=True)
class Operation:
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


@dataclass(frozen=True)
class Part:
    """One array that a plan leaves."""

    coordinates: tuple[tuple[str, int], ...]
    """Coordinates on the token axes."""
    rank: int
    """The lowest rank that contributed."""
    shape: Shape


@dataclass(frozen=True)
class UnshardPlan:
    """Operations on the arrays of ``ranks``, in order, and what they leave."""

    ranks: tuple[int, ...]
    operations: tuple[Operation, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class _Array:
    """An array in planning: its shape, where it is on the axes that still matter, the ranks behind it."""

    shape: Shape
    position: Mapping[str, int]
    ranks: tuple[int, ...]


@dataclass
class _Planner:
    dims: Dims
    token_axes: tuple[str, ...]
    world: Mapping[int, Coordinates]
    missing_ranks: tuple[int, ...]
    sizes: Mapping[str, int]
    arrays: list[_Array]
    operations: list[Operation] = field(default_factory=list)
    told_apart: bool = True
    """Whether arrays that agree on every axis that the dims name are an error."""

    def group(self, axis: str) -> tuple[tuple[int, ...], ...]:
        """Group arrays that agree on every axis but ``axis``, each group in the order of ``axis``."""
        buckets: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for index, array in enumerate(self.arrays):
            key = tuple(sorted((name, at) for name, at in array.position.items() if name != axis))
            buckets.setdefault(key, []).append(index)
        return tuple(
            tuple(sorted(buckets[key], key=lambda index: self.arrays[index].position[axis])) for key in sorted(buckets)
        )

    def apply(self, operation_kind: OperationKind, axis: str, dimension: int = 0,
              sequence_lengths: tuple[int, ...] = ()) -> None:  # fmt: skip
        """Append an operation over ``axis``, unless there is nothing to bring together."""
        groups = self.group(axis)
        for group in groups:
            if operation_kind != "pick":
                self.check_complete(axis, group, operation_kind)
            positions = [self.arrays[index].position[axis] for index in group]
            if self.told_apart and len(set(positions)) != len(positions):
                self.fail_undeclared(group)
        if any(len(group) > 1 for group in groups):
            after = [self.combine(operation_kind, group, axis, dimension) for group in groups]
            self.record(operation_kind, axis, groups, after, dimension, sequence_lengths)
        else:
            after = [self.combine("pick", group, axis, dimension) for group in groups]
        self.arrays = after

    def record(
        self,
        kind: OperationKind,
        axis: str,
        groups: tuple[tuple[int, ...], ...],
        after: Sequence[_Array],
        dimension: int,
        sequence_lengths: tuple[int, ...],
    ) -> None:
        before = tuple(array.shape for array in self.arrays)
        shapes_after = tuple(array.shape for array in after)
        self.operations.append(
            Operation(kind, axis, groups, dimension, sequence_lengths, self.sizes[axis], before, shapes_after)
        )

    def combine(self, kind: OperationKind, group: tuple[int, ...], axis: str, dimension: int) -> _Array:
        members = [self.arrays[index] for index in group]
        shape = members[0].shape
        ranks = tuple(sorted(rank for member in members for rank in member.ranks))
        if kind in ("concatenate", "concatenate_sequences"):
            for member in members[1:]:
                if _without(member.shape, dimension) != _without(shape, dimension):
                    raise PairError(_shapes_differ("pieces", axis, members, self.dims))
            length = sum(member.shape[dimension] for member in members)
            shape = (*shape[:dimension], length, *shape[dimension + 1 :])
        elif kind == "sum" and any(member.shape != shape for member in members):
            raise PairError(_shapes_differ("summands", axis, members, self.dims))
        position = {name: at for name, at in members[0].position.items() if name != axis}
        return _Array(shape, position, ranks)

    def check_complete(self, axis: str, group: tuple[int, ...], kind: OperationKind) -> None:
        """Raise PairError, naming ranks, when a piece or summand over ``axis`` was not recorded."""
        fixed = {name: at for name, at in self.arrays[group[0]].position.items() if name != axis}
        present = {self.arrays[index].position[axis] for index in group}
        seen_in_world: set[int] = set()
        absent_ranks: dict[int, list[int]] = {}
        for rank, coordinates in self.world.items():
            if axis not in coordinates:
                continue
            at = coordinates[axis][0]
            seen_in_world.add(at)
            if at not in present and all(coordinates.get(name, (0, 1))[0] == where for name, where in fixed.items()):
                absent_ranks.setdefault(at, []).append(rank)
        unseen = sorted(set(range(self.sizes.get(axis, 1))) - seen_in_world)
        if not absent_ranks and not unseen:
            return
        absent = sorted([*absent_ranks, *unseen])
        what = "summand" if kind == "sum" else "piece"
        message = (
            f"the {what}{'s' * (len(absent) > 1)} of {axis} rank {_listing(absent)} (of {self.sizes[axis]}) "
            f"{'are' if len(absent) > 1 else 'is'} missing"
        )
        recorded = sorted(rank for ranks in absent_ranks.values() for rank in ranks)
        if recorded:
            message += f": rank {_listing(recorded)} recorded nothing here"
        if unseen and self.missing_ranks:
            message += f": the run has no file of rank {_listing(self.missing_ranks)}"
        raise PairError(
            message,
            hint="record it on every rank, give dims that fit with --override-dims, or compare rank by rank with "
            "--preset raw",
            name="piece-missing",
        )

    def fail_undeclared(self, group: Sequence[int]) -> None:
        ranks = sorted(rank for index in group for rank in self.arrays[index].ranks)
        raise _undeclared(ranks, self.world, self.dims)


def plan_unshard(
    dims: Dims,
    shards: Sequence[Shard],
    *,
    token_axes: tuple[str, ...] = (),
    scattered_over: tuple[str, ...] = (),
    world: Mapping[int, Coordinates] | None = None,
    missing_ranks: tuple[int, ...] = (),
    sequence_lengths: tuple[int, ...] | None = None,
) -> UnshardPlan:
    """Plan how ``shards`` (one per rank) become one array per coordinate on ``token_axes``.

    ``scattered_over`` are axes over which the token dimension is split although the dims do not say so.
    ``world`` gives the coordinates of all ranks of the run, those that did not record this tensor too;
    ``sequence_lengths`` the rows of each sequence in the pass, which packed tokens split by context parallelism
    need. Raises PairError when pieces are missing, do not fit, or are not told apart by the dims; DimsError when
    the dims do not fit the shape.
    """
    for shard in shards:
        dims.check_shape(shard.shape)
    world = {shard.rank: shard.coordinates for shard in shards} if world is None else world
    sizes: dict[str, int] = {}
    for coordinates in [*world.values(), *(shard.coordinates for shard in shards)]:
        for axis, (_, size) in coordinates.items():
            sizes[axis] = max(size, sizes.get(axis, 1))
    active = {axis for axis, size in sizes.items() if size > 1}
    relevant = {*dims.axes, *token_axes, *scattered_over} & active
    if dims.data_parallel_axis and dims.data_parallel_axis not in token_axes:
        relevant.discard(dims.data_parallel_axis)
    ordered = sorted(shards, key=lambda shard: shard.rank)
    arrays = [
        _Array(
            shard.shape,
            {axis: shard.coordinates.get(axis, (0, 1))[0] for axis in relevant},
            (shard.rank,),
        )
        for shard in ordered
    ]
    planner = _Planner(dims, token_axes, world, missing_ranks, sizes, arrays)
    joined_later = set(token_axes)
    for axis in sorted((dims.replicated & relevant) - joined_later - set(scattered_over)):
        planner.apply("pick", axis)
    for axis in reversed([axis for axis in scattered_over if axis in relevant]):
        planner.apply("concatenate", axis, _token_dimension(dims, axis))
    for dimension, spec in enumerate(dims.dimensions):
        for modifier in reversed(spec.modifiers):
            if modifier.axis in relevant and modifier.axis not in joined_later | set(scattered_over):
                _plan_modifier(planner, modifier, dimension, sequence_lengths)
    by_part: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for index, array in enumerate(planner.arrays):
        part = tuple((axis, array.position[axis]) for axis in token_axes if axis in array.position)
        by_part.setdefault(part, []).append(index)
    for indices in by_part.values():
        if len(indices) > 1:
            planner.fail_undeclared(indices)
    parts = tuple(
        Part(part, planner.arrays[index].ranks[0], planner.arrays[index].shape) for part, (index,) in by_part.items()
    )
    ranks = tuple(shard.rank for shard in ordered)
    return UnshardPlan(ranks, tuple(planner.operations), parts)


def _plan_modifier(
    planner: _Planner, modifier: Modifier, dimension: int, sequence_lengths: tuple[int, ...] | None
) -> None:
    axis = modifier.axis
    if modifier.partial:
        planner.apply("sum", axis)
        return
    spec = planner.dims.dimensions[dimension]
    zigzag = modifier.ordering == "zigzag"
    if zigzag and dimension not in planner.dims.token_dimensions:
        raise DimsError(
            f"zigzag in dims {planner.dims.text!r} is for the sequence dimension (s or t), not for {spec.label!r}"
        )
    size = planner.sizes[axis]
    if spec.names == (TOKEN,) and (zigzag or axis in ("cp", "attn_cp")):
        if sequence_lengths is None and zigzag:
            raise PairError(
                f"packed tokens in zigzag order over {axis} need the lengths of their sequences, and no token "
                "layout of this step gives them",
                hint="record the token layout with dumper.step(layout=...)",
            )
        if sequence_lengths is not None:
            chunk = 2 * size if zigzag else size
            odd = [length for length in sequence_lengths if length % chunk]
            if odd and zigzag:
                raise PairError(
                    f"a sequence of {odd[0]} tokens cannot be split in zigzag order over {axis} of size {size}: "
                    f"the length must be a multiple of {chunk}"
                )
            if not odd:
                planner.apply("concatenate_sequences", axis, dimension, sequence_lengths)
                if zigzag:
                    _undo_zigzag(planner, axis, dimension, sequence_lengths)
                return
    planner.apply("concatenate", axis, dimension)
    if zigzag:
        _undo_zigzag(planner, axis, dimension, ())


def _undo_zigzag(planner: _Planner, axis: str, dimension: int, lengths: tuple[int, ...]) -> None:
    if planner.sizes[axis] < 2:
        return
    groups = tuple((index,) for index in range(len(planner.arrays)))
    # The order over the axis is put right once all its ranks are together; the array keeps its shape.
    planner.record("undo_zigzag", axis, groups, planner.arrays, dimension, lengths)


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
    arrays = [_Array(one.shape, {axis: at for axis, (at, _) in one.coordinates.items()}, (one.rank,)) for one in shards]
    world = {shard.rank: shard.coordinates for shard in shards}
    planner = _Planner(dims, (), world, (), sizes, arrays, told_apart=False)
    for axis in replicated:
        planner.apply("pick", axis)
    for dimension, spec in enumerate(dims.dimensions):
        for modifier in reversed(spec.modifiers):
            axis = modifier.axis
            if axis not in sizes:
                continue
            if modifier.partial:
                planner.apply("sum", axis)
            elif sequence_lengths is not None and spec.names == (TOKEN,) and axis == "cp":
                _check_sequences(planner.arrays, dimension, axis, sizes[axis], sequence_lengths)
                planner.apply("concatenate_sequences", axis, dimension, tuple(sequence_lengths))
            else:
                planner.apply("concatenate", axis, dimension)
    for dimension, spec in enumerate(dims.dimensions):
        for modifier in spec.modifiers:
            if modifier.ordering == "zigzag":
                _undo_last(planner, modifier.axis, dimension, sequence_lengths)
    if len(planner.arrays) != 1:
        raise PairError(f"dims {dims.text!r} leave {len(planner.arrays)} tensors where there must be one")
    (whole,) = planner.arrays
    ranks = tuple(shard.rank for shard in shards)
    return UnshardPlan(ranks, tuple(planner.operations), (Part((), whole.ranks[0], whole.shape),))


def _check_sequences(
    arrays: Sequence[_Array], dimension: int, axis: str, size: int, sequence_lengths: Sequence[int]
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


def _undo_last(planner: _Planner, axis: str, dimension: int, sequence_lengths: Sequence[int] | None) -> None:
    """Put a zigzag order right in what is whole already; raises PairError where that cannot be."""
    spec = planner.dims.dimensions[dimension]
    if spec.names not in ((TOKEN,), (SEQUENCE,)):
        raise PairError(f"zigzag is for the dimensions s and t, not for {spec.label!r}")
    if axis not in planner.sizes:
        raise PairError(
            f"dims {planner.dims.text!r} have a zigzag order over {axis}, which has one rank only",
            hint=f"leave out the modifier {axis}:zigzag on this side",
        )
    packed = spec.names == (TOKEN,)
    if packed and sequence_lengths is None:
        raise PairError(
            f"packed tokens in zigzag order over {axis} need the lengths of their sequences",
            hint="compare with --token-aligner and dumps that hold seq_lens or cu_seqlens_q",
        )
    lengths = tuple(sequence_lengths or ()) if packed else ()
    chunks = 2 * planner.sizes[axis]
    for array in planner.arrays:
        total = array.shape[dimension]
        if sum(lengths) > total:
            raise PairError(f"the sequences have {sum(lengths)} rows, and the tensor {total}")
        for length in lengths or (total,):
            if length and math.ceil(length / chunks) * (chunks - 1) >= length:
                raise PairError(f"a sequence of {length} rows does not make {chunks} chunks")
    _undo_zigzag(planner, axis, dimension, lengths)


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


def _token_dimension(dims: Dims, axis: str) -> int:
    if not dims.token_dimensions:
        raise PairError(f"dims {dims.text!r} have no token dimension that could be split over {axis}")
    return dims.token_dimensions[-1]


def _without(shape: Shape, dimension: int) -> Shape:
    return (*shape[:dimension], *shape[dimension + 1 :])


def _listing(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _shapes_differ(what: str, axis: str, members: Sequence[_Array], dims: Dims) -> str:
    shapes = ", ".join(f"rank {member.ranks[0]}: {list(member.shape)}" for member in members)
    return f"the {what} over {axis} (dims {dims.text!r}) have shapes that do not fit together: {shapes}"


def _undeclared(ranks: Sequence[int], world: Mapping[int, Coordinates], dims: Dims) -> PairError:
    """The error for arrays that the dims do not tell apart."""
    named = dims.axes
    differing = sorted(
        axis
        for axis in {axis for rank in ranks for axis in world.get(rank, {})} - named
        if len({world.get(rank, {}).get(axis, (0, 1))[0] for rank in ranks}) > 1
    )
    if not differing:
        recorded = sorted({axis for rank in ranks for axis in world.get(rank, {})})
        return PairError(
            f"ranks {_listing(ranks)} recorded it, and no recorded axis that dims {dims.text!r} name tells them apart "
            f"(the run recorded {', '.join(recorded) or 'no parallel layout'})",
            hint="record the parallel layout of the run, or keep ranks apart with --preset raw",
            name="ranks-not-told-apart",
        )
    axes = " or ".join(repr(axis) for axis in differing)
    example = differing[0]
    return PairError(
        f"ranks {_listing(ranks)} recorded it and differ in {axes}, which dims {dims.text!r} do not mention",
        hint=f"write NAME[{example}] for the dimension that is split, [{example}:partial] for summands, "
        f"or '# {example}:replicated'; --override-dims does it without a new recording",
        name="axis-not-declared",
    )

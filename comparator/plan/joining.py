"""Arrays of several ranks on their way to whole tensors: what each operation leaves, and why one cannot be made.

Arrays that agree on all axes named in the dims, and yet are several, differ in an axis that the dims do not explain;
that is an error. An axis that follows from others (``ep`` where ``tp`` determines it) never tells arrays apart and so
needs no declaration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from comparator.errors import PairError
from comparator.plan.operations import Coordinates, Operation, OperationKind, Shape
from tensortap.dims import Dims


class Array(Struct, frozen=True):
    """An array in planning: its shape, where it is on the axes that still matter, the ranks behind it."""

    shape: Shape
    position: Mapping[str, int]
    ranks: tuple[int, ...]


class Joining(Struct):
    """The arrays as they are after the operations so far, and these operations."""

    dims: Dims
    token_axes: tuple[str, ...]
    world: Mapping[int, Coordinates]
    missing_ranks: tuple[int, ...]
    sizes: Mapping[str, int]
    arrays: list[Array]
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
        # In SGLang's order a sum of one summand is a sum too: integers become wider by it.
        alone = operation_kind == "sum" and not self.told_apart
        if alone or any(len(group) > 1 for group in groups):
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
        after: Sequence[Array],
        dimension: int,
        sequence_lengths: tuple[int, ...],
    ) -> None:
        before = tuple(array.shape for array in self.arrays)
        shapes_after = tuple(array.shape for array in after)
        self.operations.append(
            Operation(kind, axis, groups, dimension, sequence_lengths, self.sizes[axis], before, shapes_after)
        )

    def combine(self, kind: OperationKind, group: tuple[int, ...], axis: str, dimension: int) -> Array:
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
        return Array(shape, position, ranks)

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

    def undo_zigzag(self, axis: str, dimension: int, sequence_lengths: tuple[int, ...]) -> None:
        """Put the rows of every array in natural order, once all ranks of ``axis`` are together in it."""
        if self.sizes[axis] > 1:
            groups = tuple((index,) for index in range(len(self.arrays)))
            self.record("undo_zigzag", axis, groups, self.arrays, dimension, sequence_lengths)

    def fail_undeclared(self, group: Sequence[int]) -> None:
        ranks = sorted(rank for index in group for rank in self.arrays[index].ranks)
        raise _undeclared(ranks, self.world, self.dims)


def _without(shape: Shape, dimension: int) -> Shape:
    return (*shape[:dimension], *shape[dimension + 1 :])


def _listing(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _shapes_differ(what: str, axis: str, members: Sequence[Array], dims: Dims) -> str:
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
            hint="record the parallel layout of the run, dumper.configure(parallel={'dp': (rank, size)}), or keep "
            "ranks apart with --preset raw",
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

"""Plan how the shards of one tensor in one step become whole tensors, from dims and coordinates alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from comparator.errors import PairError
from comparator.plan.joining import Array, Joining
from comparator.plan.operations import Coordinates, Part, Shard, UnshardPlan
from tensortap.dims import TOKEN, Dims, DimsError, Modifier


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
        Array(
            shard.shape,
            {axis: shard.coordinates.get(axis, (0, 1))[0] for axis in relevant},
            (shard.rank,),
        )
        for shard in ordered
    ]
    joining = Joining(dims, token_axes, world, missing_ranks, sizes, arrays)
    joined_later = set(token_axes)
    for axis in sorted((dims.replicated & relevant) - joined_later - set(scattered_over)):
        joining.apply("pick", axis)
    for axis in reversed([axis for axis in scattered_over if axis in relevant]):
        joining.apply("concatenate", axis, _token_dimension(dims, axis))
    for dimension, spec in enumerate(dims.dimensions):
        for modifier in reversed(spec.modifiers):
            if modifier.axis in relevant and modifier.axis not in joined_later | set(scattered_over):
                _plan_modifier(joining, modifier, dimension, sequence_lengths)
    by_part: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for index, array in enumerate(joining.arrays):
        part = tuple((axis, array.position[axis]) for axis in token_axes if axis in array.position)
        by_part.setdefault(part, []).append(index)
    for indices in by_part.values():
        if len(indices) > 1:
            joining.fail_undeclared(indices)
    parts = tuple(
        Part(part, joining.arrays[index].ranks[0], joining.arrays[index].shape) for part, (index,) in by_part.items()
    )
    ranks = tuple(shard.rank for shard in ordered)
    return UnshardPlan(ranks, tuple(joining.operations), parts)


def _plan_modifier(
    joining: Joining, modifier: Modifier, dimension: int, sequence_lengths: tuple[int, ...] | None
) -> None:
    axis = modifier.axis
    if modifier.partial:
        joining.apply("sum", axis)
        return
    spec = joining.dims.dimensions[dimension]
    zigzag = modifier.ordering == "zigzag"
    if zigzag and dimension not in joining.dims.token_dimensions:
        raise DimsError(
            f"zigzag in dims {joining.dims.text!r} is for the sequence dimension (s or t), not for {spec.label!r}"
        )
    size = joining.sizes[axis]
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
                joining.apply("concatenate_sequences", axis, dimension, sequence_lengths)
                if zigzag:
                    joining.undo_zigzag(axis, dimension, sequence_lengths)
                return
    joining.apply("concatenate", axis, dimension)
    if zigzag:
        joining.undo_zigzag(axis, dimension, ())


def _token_dimension(dims: Dims, axis: str) -> int:
    if not dims.token_dimensions:
        raise PairError(f"dims {dims.text!r} have no token dimension that could be split over {axis}")
    return dims.token_dimensions[-1]

"""Unsharding: whatever way a tensor was split over ranks, the plan brings it back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import comparator
from comparator.align.unshard import Replicas, _sum_as_torch, undo_zigzag, unshard
from comparator.errors import PairError
from comparator.measure.measurer import measure_replicas
from comparator.plan.operations import Shard, UnshardPlan
from comparator.plan.shards import plan_unshard
from comparator.rules import OUR_RULES
from tensortap.dims import DimsError, parse_dims
from tests.comparator.fakes import FakeRecord, FakeRun

Array = npt.NDArray[np.float32]
Coordinates = Mapping[str, tuple[int, int]]


def put_together(
    dims: str, shards: Sequence[tuple[Coordinates, Array]], **arguments: object
) -> tuple[UnshardPlan, list[Array]]:
    described = [Shard(rank, array.shape, coordinates) for rank, (coordinates, array) in enumerate(shards)]
    plan = plan_unshard(parse_dims(dims), described, **arguments)  # type: ignore[arg-type]
    visited: list[Replicas] = []
    result = unshard(plan, [array for _, array in shards], visit=visited.append)
    assert [array.shape for array in result] == [part.shape for part in plan.parts]
    assert all(np.array_equal(group.members[0], member) for group in visited for member in group.members)
    return plan, list(result)


@dataclass(frozen=True)
class Sharding:
    """A tensor, the dims that describe how it is split, and every rank's piece."""

    tensor: Array
    dims: str
    shards: tuple[tuple[Coordinates, Array], ...]


@st.composite
def shardings(draw: st.DrawFn) -> Sharding:
    """Any mesh of up to four axes over a tensor of two or three dimensions; each axis splits a dimension (in
    uneven pieces), holds summands, or replicates; axes that follow from others are recorded too."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    names = ["t", "h", "d"][: len(shape)]
    sizes = draw(st.lists(st.integers(1, 3), max_size=4).filter(lambda found: np.prod(found) <= 24))
    axes = [f"axis{index}" for index in range(len(sizes))]
    roles = [draw(st.sampled_from(["replicated", "partial", *range(len(shape))])) for _ in axes]
    tensor = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float32).reshape(shape)
    partial_at = {axis: draw(st.integers(0, len(shape) - 1)) for axis in axes}
    modifiers: list[list[str]] = [[] for _ in shape]
    for axis, role in zip(axes, roles, strict=True):
        if isinstance(role, int):
            modifiers[role].append(axis)
        elif role == "partial":
            modifiers[partial_at[axis]].append(f"{axis}:partial")
    cuts: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def bounds(axis: str, path: tuple[int, ...], length: int, size: int) -> list[int]:
        key = (axis, (*path, length))
        if key not in cuts:
            inner = sorted(draw(st.lists(st.integers(0, length), min_size=size - 1, max_size=size - 1)))
            cuts[key] = [0, *inner, length]
        return cuts[key]

    order = list(itertools.product(*(range(size) for size in sizes)))
    order = list(draw(st.permutations(order)))
    weights = {axis: draw(st.integers(0, 5)) for axis in axes}
    shards = []
    for place in order:
        where = dict(zip(axes, place, strict=True))
        piece = tensor
        for dimension, listed in enumerate(modifiers):
            path: tuple[int, ...] = ()
            for modifier in listed:
                axis, _, qualifier = modifier.partition(":")
                size = sizes[axes.index(axis)]
                if qualifier:
                    share = weights[axis] if where[axis] else 1 - (size - 1) * weights[axis]
                    piece = piece * np.float32(share)
                    continue
                edges = bounds(axis, path, piece.shape[dimension], size)
                start, stop = edges[where[axis]], edges[where[axis] + 1]
                piece = np.take(piece, np.arange(start, stop), axis=dimension)
                path = (*path, where[axis])
        coordinates = {axis: (where[axis], size) for axis, size in zip(axes, sizes, strict=True)}
        flat = int(np.ravel_multi_index(place, sizes)) if sizes else 0
        coordinates["world"] = (flat, len(order))
        shards.append((coordinates, piece))
    labels = [name + (f"[{','.join(listed)}]" if listed else "") for name, listed in zip(names, modifiers, strict=True)]
    replicated = [f"{axis}:replicated" for axis, role in zip(axes, roles, strict=True) if role == "replicated"]
    return Sharding(tensor, " ".join(labels) + (f" # {' '.join(replicated)}" if replicated else ""), tuple(shards))


@settings(max_examples=150, deadline=None)
@given(shardings())
def test_any_sharding_comes_back(sharding: Sharding) -> None:
    _, (array,) = put_together(sharding.dims, sharding.shards)
    np.testing.assert_array_equal(array, sharding.tensor)


X = np.arange(24, dtype=np.float32).reshape(4, 6)
TP0, TP1 = {"tp": (0, 2)}, {"tp": (1, 2)}


def test_partial_sums_over_two_axes() -> None:
    shards = [({"tp": (a, 2), "cp": (b, 2)}, X / 4) for a in range(2) for b in range(2)]
    _, (array,) = put_together("t h[tp:partial,cp:partial]", shards)
    np.testing.assert_array_equal(array, X)


def test_axes_that_follow_from_others_need_no_declaration() -> None:
    shards = [
        ({"moe_ep": (e, 2), "moe_tp": (m, 2), "tp": (2 * e + m, 4), "attn_tp": (2 * e + m, 4)}, X[:, 3 * m : 3 * m + 3])
        for e in range(2)
        for m in range(2)
    ]
    _, (array,) = put_together("t h[moe_tp] # moe_ep:replicated", shards)
    np.testing.assert_array_equal(array, X)


def test_an_axis_of_one_run_is_known_in_the_other() -> None:
    """Dims are written once, for runs of one rank and of many."""
    value = np.arange(12, dtype=np.float32).reshape(4, 3)
    one = FakeRun([FakeRecord("x", value, dims="d0[shard] d1")])
    parts = [FakeRecord("x", part, rank=rank, dims="d0[shard] d1") for rank, part in enumerate(np.split(value, 2))]
    two = FakeRun(parts, parallel={rank: {"shard": (rank, 2)} for rank in range(2)})
    assert comparator.compare(one, two).passed
    assert comparator.compare(two, one).passed
    assert not comparator.compare(one, one).passed, "nobody knows it"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_declarations_alone(shape: tuple[int, ...]) -> None:
    def run(ranks: int, apart: float = 0.0) -> FakeRun:
        value = np.full(shape, 3.5, np.float32)
        records = [
            FakeRecord("loss", value + np.float32(apart * rank), rank=rank, dims="# dp:replicated")
            for rank in range(ranks)
        ]
        return FakeRun(records, parallel={rank: {"dp": (rank, ranks)} for rank in range(ranks)})

    assert comparator.compare(run(1), run(2)).passed
    report = comparator.compare(run(1), run(2, apart=1.0))
    assert not report.passed
    assert "Replicas of the target" in report.words


def test_an_axis_that_tells_ranks_apart_must_be_declared() -> None:
    with pytest.raises(PairError, match="ranks 0, 1 recorded it and differ in 'tp'") as caught:
        put_together("t h", [(TP0, X), (TP1, X)])
    assert "# tp:replicated" in caught.value.hint


def test_a_missing_piece_is_named() -> None:
    world = {0: TP0, 1: TP1}
    with pytest.raises(PairError, match=r"piece of tp rank 1 \(of 2\) is missing: rank 1 recorded nothing"):
        plan_unshard(parse_dims("t h[tp]"), [Shard(0, (4, 3), TP0)], world=world)
    with pytest.raises(PairError, match="the run has no file of rank 1"):
        plan_unshard(parse_dims("t h[tp:partial]"), [Shard(0, (4, 3), TP0)], world={0: TP0}, missing_ranks=(1,))


def test_a_replica_that_was_not_recorded_is_no_loss() -> None:
    plan = plan_unshard(parse_dims("t h # tp:replicated"), [Shard(0, (4, 6), TP0)], world={0: TP0, 1: TP1})
    assert plan.parts[0].shape == (4, 6)


def test_replicas_that_differ_are_found() -> None:
    plan = plan_unshard(parse_dims("t h # tp:replicated"), [Shard(0, X.shape, TP0), Shard(1, X.shape, TP1)])
    for other, gap in ((X + 1e-3, pytest.approx(1e-3, rel=1e-2)), (X.copy(), 0)):
        visited: list[Replicas] = []
        unshard(plan, [X, other], visit=visited.append)
        (check,) = measure_replicas("baseline", visited[0], OUR_RULES)
        assert check.difference is not None
        assert check.difference.max_abs == gap


def test_pieces_that_do_not_fit() -> None:
    with pytest.raises(PairError, match=r"do not fit together: rank 0: \[4, 3\], rank 1: \[3, 3\]"):
        put_together("t h[tp]", [(TP0, X[:, :3]), (TP1, X[:3, 3:])])


def test_own_rows_of_data_parallel_ranks_stay_apart_and_tp_means_the_rest() -> None:
    """tp = attn_dp x attn_tp: summands are added within each data-parallel rank."""
    shards = [
        ({"tp": (2 * d + a, 4), "attn_dp": (d, 2), "attn_tp": (a, 2)}, X[2 * d : 2 * d + 2] / 2)
        for d in range(2)
        for a in range(2)
    ]
    plan, arrays = put_together("t h[tp:partial]", shards, token_axes=("attn_dp",))
    assert [part.coordinates for part in plan.parts] == [(("attn_dp", 0),), (("attn_dp", 1),)]
    np.testing.assert_array_equal(np.concatenate(arrays), X)


def test_rows_that_are_scattered_although_dims_do_not_say_so() -> None:
    shards = [(TP0, X[:2]), (TP1, X[2:])]
    _, (array,) = put_together("t h # tp:replicated", shards, scattered_over=("tp",))
    np.testing.assert_array_equal(array, X)


def zigzag(array: Array, size: int) -> list[Array]:
    """The pieces of each rank in zigzag order."""
    chunks = np.split(array, 2 * size)
    return [np.concatenate([chunks[rank], chunks[2 * size - 1 - rank]]) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_zigzag_over_a_sequence(size: int) -> None:
    tensor = np.arange(12 * 2, dtype=np.float32).reshape(12, 2)
    pieces = zigzag(tensor, size)
    shards = [({"cp": (rank, size)}, piece) for rank, piece in enumerate(pieces)]
    _, (array,) = put_together("s[cp:zigzag] h", shards)
    np.testing.assert_array_equal(array, tensor)


def test_zigzag_with_sequence_parallel_inside() -> None:
    tensor = np.arange(16, dtype=np.float32).reshape(16, 1)
    shards = [
        ({"cp": (c, 2), "tp": (s, 2), "sp": (s, 2)}, part)
        for c, piece in enumerate(zigzag(tensor, 2))
        for s, part in enumerate(np.split(piece, 2))
    ]
    _, (array,) = put_together("s[cp:zigzag,sp] h", shards)
    np.testing.assert_array_equal(array, tensor)


def test_zigzag_of_packed_sequences_with_padding() -> None:
    first, second = np.arange(8, dtype=np.float32), np.arange(100, 104, dtype=np.float32)
    padding = [np.array([-1.0], dtype=np.float32), np.array([-2.0], dtype=np.float32)]
    shards = [
        ({"cp": (rank, 2)}, np.concatenate([zigzag(first, 2)[rank], zigzag(second, 2)[rank], padding[rank]]))
        for rank in range(2)
    ]
    _, (array,) = put_together("t[cp:zigzag]", shards, sequence_lengths=(8, 4))
    np.testing.assert_array_equal(array, np.concatenate([first, second, *padding]))
    with pytest.raises(PairError, match="need the lengths of their sequences"):
        put_together("t[cp:zigzag]", shards)
    with pytest.raises(PairError, match="multiple of 4"):
        put_together("t[cp:zigzag]", shards, sequence_lengths=(7, 5))


def test_zigzag_is_for_sequences() -> None:
    with pytest.raises(DimsError, match="not for 'h'"):
        put_together("t h[tp:zigzag]", [(TP0, X[:, :3]), (TP1, X[:, 3:])])


@given(st.integers(0, 40), st.integers(1, 4))
def test_undoing_zigzag_is_a_permutation(length: int, size: int) -> None:
    array = np.arange(length, dtype=np.float32)
    assert sorted(undo_zigzag(array, 0, size)) == sorted(array)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("summands", [1, 2, 8, 15, 16, 17, 40, 255, 256])
@pytest.mark.parametrize("shape", [(3,), (32,), (64,), (8, 129), (40, 64)])
def test_summands_are_added_in_the_order_of_torch(dtype: str, summands: int, shape: tuple[int, ...]) -> None:
    import torch

    generator = torch.Generator().manual_seed(summands)
    values = torch.randn(summands, *shape, generator=generator)
    values = (values * torch.randn(summands, *shape, generator=generator).exp()).to(getattr(torch, dtype))
    if len(shape) > 1:
        values[:, 0, :3] = torch.tensor([-0.0, float("inf"), float("nan")])
    arrays = [value.view(torch.int16).numpy().view(np_dtype(dtype)) for value in values]
    expected = values.sum(dim=0).view(torch.int16).numpy()
    found = np.ascontiguousarray(_sum_as_torch(arrays)).view(np.int16)
    nan = values.sum(dim=0).isnan().repeat_interleave(values.itemsize // 2, dim=-1).numpy()
    assert np.array_equal(np.where(nan, 0, found), np.where(nan, 0, expected))


def np_dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)

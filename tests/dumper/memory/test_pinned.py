"""Page-locked memory: parts of few pieces, counted as what the system gave, and given back."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.memory import pinned
from dumper.memory.buffers import BufferPool, host_buffer
from dumper.memory.cuda_runtime import DeviceError
from dumper.memory.pinned import GRANULE, PinnedArena, PinnedBuffer
from tests.dumper.memory.stand_in import StandInRuntime

UNIT = 16 * GRANULE
"""Of a piece, here."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "PIECE_GRANULE", UNIT)
    monkeypatch.setattr(pinned, "SMALLEST_PIECE", UNIT)
    monkeypatch.setattr(pinned, "LARGEST_PIECE", 4 * UNIT)


@pytest.fixture
def runtime() -> Iterator[StandInRuntime]:
    made = StandInRuntime()
    yield made
    made.end()


def _arena(runtime: StandInRuntime, budget: int = 64 * UNIT) -> tuple[PinnedArena, BufferPool]:
    pool = BufferPool(budget)
    return PinnedArena(runtime, pool), pool


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5 * UNIT)), max_size=80), st.integers(0, 40))
def test_parts_never_overlap_and_what_is_held_is_what_the_system_gave(
    actions: list[tuple[bool, int]], units: int
) -> None:
    runtime = StandInRuntime()
    runtime.end()
    arena, pool = _arena(runtime, units * UNIT)
    in_use: list[PinnedBuffer] = []
    for take, number in actions:
        if take or not in_use:
            _take_apart(arena, number, in_use)
        else:
            arena.give_back(in_use.pop(number % len(in_use)))
        assert pool.held_bytes == sum(runtime.pinned.values())
    while in_use:
        arena.give_back(in_use.pop())
    arena.let_go()
    assert pool.held_bytes == 0
    assert not runtime.pinned


def _take_apart(arena: PinnedArena, nbytes: int, in_use: list[PinnedBuffer]) -> None:
    buffer = arena.take(nbytes)
    assert len(buffer.view) == buffer.nbytes >= nbytes
    for other in in_use:
        assert buffer.address + buffer.nbytes <= other.address or other.address + other.nbytes <= buffer.address
    in_use.append(buffer)


def test_values_of_changing_sizes_are_served_from_the_same_pieces(runtime: StandInRuntime) -> None:
    arena, _ = _arena(runtime)
    for number in range(200):
        buffers = [arena.take(UNIT + number * 100 + part * 5000) for part in range(3)]
        pieces = set(runtime.pinned)
        for buffer in buffers:
            arena.give_back(buffer)
        if number == 100:
            settled = pieces
    assert pieces == settled
    assert len(pieces) <= 4


def test_pieces_grow_with_what_is_held(runtime: StandInRuntime) -> None:
    arena, _ = _arena(runtime)
    buffers = [arena.take(UNIT) for _ in range(12)]
    assert list(runtime.pinned.values()) == [UNIT, UNIT, 2 * UNIT, 4 * UNIT, 4 * UNIT]
    assert len({buffer.address for buffer in buffers}) == 12


def test_near_the_budget_a_piece_is_as_large_as_its_value(runtime: StandInRuntime) -> None:
    arena, pool = _arena(runtime, 9 * UNIT)
    buffers = [arena.take(UNIT) for _ in range(9)]
    assert pool.held_bytes == sum(buffer.nbytes for buffer in buffers) == 9 * UNIT


def test_free_pieces_that_are_too_small_make_room_for_a_larger_value(runtime: StandInRuntime) -> None:
    arena, pool = _arena(runtime, 8 * UNIT)
    for buffer in [arena.take(2 * UNIT) for _ in range(4)]:
        arena.give_back(buffer)
    del buffer
    assert arena.take(8 * UNIT).nbytes == 8 * UNIT
    assert pool.held_bytes <= 10 * UNIT


def test_buffers_of_shelves_make_room(runtime: StandInRuntime) -> None:
    arena, pool = _arena(runtime, 4 * UNIT)
    shelf = pool.shelf(host_buffer)
    shelf.give_back(shelf.take(3 * UNIT))
    arena.take(2 * UNIT)
    assert pool.held_bytes == 2 * UNIT


def test_what_is_in_use_stays_when_the_rest_is_let_go_of(runtime: StandInRuntime) -> None:
    arena, pool = _arena(runtime)
    buffers = [arena.take(UNIT) for _ in range(4)]
    kept = buffers[0]
    for buffer in buffers[1:]:
        arena.give_back(buffer)
    del buffers, buffer
    pool.let_go()
    assert list(runtime.pinned) == [kept.piece.address]
    assert pool.held_bytes == UNIT


def test_where_a_large_piece_is_refused_a_small_one_is_made(
    runtime: StandInRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = runtime.pin

    def refuse_large(nbytes: int) -> int:
        if nbytes > UNIT:
            raise DeviceError("HostAlloc of the CUDA runtime failed with error 2")
        return pin(nbytes)

    monkeypatch.setattr(runtime, "pin", refuse_large)
    arena, pool = _arena(runtime)
    assert len({arena.take(UNIT).address for _ in range(6)}) == 6
    assert pool.held_bytes == 6 * UNIT
    with pytest.raises(DeviceError, match="HostAlloc"):
        arena.take(2 * UNIT)
    assert pool.held_bytes == 6 * UNIT


def test_the_child_of_a_fork_gives_nothing_back(runtime: StandInRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, pool = _arena(runtime)
    arena.give_back(arena.take(UNIT))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    pool.let_go()
    assert len(runtime.pinned) == 1

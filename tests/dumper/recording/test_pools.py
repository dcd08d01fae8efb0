"""Buffers that are used again: their sizes, and the budget that they stay within."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dumper.memory.buffers import SLAB_BYTES, SMALLEST_BUFFER, BufferPool, buffer_size
from dumper.writing import writer
from tests.dumper.recording.conftest import Recording

Array = npt.NDArray[np.uint8]


def fresh(nbytes: int) -> Array:
    return np.empty(nbytes, dtype=np.uint8)


@given(st.integers(0, 1 << 34))
def test_a_size_holds_the_request_and_wastes_at_most_an_eighth(nbytes: int) -> None:
    size = buffer_size(nbytes)
    assert size >= nbytes
    assert size <= max(SMALLEST_BUFFER, nbytes + nbytes // 8 + SMALLEST_BUFFER)
    assert buffer_size(size) == size


def test_few_sizes_serve_all_requests() -> None:
    assert len({buffer_size(nbytes) for nbytes in range(1 << 20, 1 << 21, 4096)}) <= 9


def test_a_buffer_that_came_back_serves_the_next_request_of_its_size() -> None:
    shelf = BufferPool(1 << 20).shelf(fresh)
    buffer = shelf.take(10_000)
    shelf.give_back(buffer)
    assert shelf.take(9_000) is buffer
    assert shelf.take(9_000) is not buffer


def test_shelves_do_not_mix_their_buffers() -> None:
    pool = BufferPool(1 << 20)
    one, other = pool.shelf(fresh), pool.shelf(fresh)
    buffer = one.take(5_000)
    one.give_back(buffer)
    assert other.take(5_000) is not buffer


def test_free_buffers_make_room_for_those_in_use_the_longest_unused_sizes_first() -> None:
    pool = BufferPool(4 * SMALLEST_BUFFER)
    shelf = pool.shelf(fresh)
    old, new = shelf.take(SMALLEST_BUFFER), shelf.take(2 * SMALLEST_BUFFER)
    shelf.give_back(old)
    shelf.give_back(new)
    shelf.take(SMALLEST_BUFFER * 2 - 1)
    shelf.take(SMALLEST_BUFFER * 2)
    assert pool.held_bytes == 4 * SMALLEST_BUFFER
    assert shelf.take(SMALLEST_BUFFER) is not old


def test_what_is_not_in_use_can_be_let_go_of() -> None:
    pool = BufferPool(1 << 20)
    shelf = pool.shelf(fresh)
    used, free = shelf.take(5_000), shelf.take(50_000)
    shelf.give_back(free)
    pool.let_go()
    assert pool.held_bytes == used.nbytes
    assert shelf.take(50_000) is not free


def test_an_idle_writer_lets_go_of_free_buffers(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "IDLE_ROUNDS", 2)
    recorder = recording.start()
    for number in range(5):
        recorder.dump("x", torch.full((1 << 20,), float(number)))
    recorder.flush()
    session = recorder._open.session
    assert session is not None
    pool = session._stager.host.pool
    deadline = time.monotonic() + 60
    # The slab that small values go to stays.
    while pool.held_bytes > SLAB_BYTES:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    recorder.dump("x", torch.full((1 << 20,), 5.0))
    assert [float(record.array()[0]) for record in recording.read().records] == [0, 1, 2, 3, 4, 5]


def test_a_buffer_that_cannot_be_made_takes_no_room() -> None:
    def fail(nbytes: int) -> Array:
        raise MemoryError(nbytes)

    pool = BufferPool(1 << 20)
    shelf = pool.shelf(fail)
    with pytest.raises(MemoryError):
        shelf.take(5_000)
    assert pool.held_bytes == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), max_size=60), st.integers(0, 400_000))
def test_only_buffers_in_use_exceed_the_budget(actions: list[tuple[bool, int]], budget: int) -> None:
    pool = BufferPool(budget)
    makers: list[Callable[[int], Array]] = [fresh, fresh]
    shelves = [pool.shelf(make) for make in makers]
    in_use = []
    for take, nbytes in actions:
        if take or not in_use:
            shelf = shelves[nbytes % 2]
            in_use.append((shelf, shelf.take(nbytes)))
        else:
            shelf, buffer = in_use.pop(nbytes % len(in_use))
            shelf.give_back(buffer)
        needed = sum(buffer.nbytes for _, buffer in in_use)
        assert needed <= pool.held_bytes <= max(budget, needed)

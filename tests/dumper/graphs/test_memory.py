"""Memory that graphs share."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from dumper.recording.graphs.memory import ALIGNMENT, Cursor, GraphMemory

CPU = torch.device("cpu")
SIZES = st.lists(st.integers(0, 5000), max_size=30)


@given(captures=st.lists(SIZES, min_size=1, max_size=5), budget=st.integers(ALIGNMENT, 60_000))
def test_values_of_one_capture_never_overlap_and_all_stay_within_the_budget(
    captures: list[list[int]], budget: int
) -> None:
    memory = GraphMemory(first_chunk=2048)
    for sizes in captures:
        cursor, placed = Cursor(), []
        for nbytes in sizes:
            held = memory.held_bytes()
            place = memory.place(cursor, CPU, nbytes, budget)
            if place is None:
                # Not even a chunk of its own would have fitted.
                assert held + nbytes > budget - ALIGNMENT
                continue
            assert place.nbytes == nbytes
            assert place.offset % ALIGNMENT == 0
            assert place.offset + nbytes <= memory.chunk(CPU, place.chunk).numel()
            placed.append((place.chunk, place.offset, place.offset + nbytes))
        # In the order of the capture.
        assert placed == sorted(placed)
        assert all(one[0] < two[0] or one[2] <= two[1] for one, two in itertools.pairwise(placed))
        assert memory.held_bytes() <= budget
    memory.let_go()
    assert memory.held_bytes() == 0


@given(sizes=SIZES)
def test_the_same_values_get_the_same_places_in_every_capture(sizes: list[int]) -> None:
    memory = GraphMemory(first_chunk=2048)
    first, second = (
        [memory.place(cursor, CPU, nbytes, 1 << 20) for nbytes in sizes] for cursor in (Cursor(), Cursor())
    )
    held = memory.held_bytes()
    assert list(second) == list(first)
    assert memory.held_bytes() == held

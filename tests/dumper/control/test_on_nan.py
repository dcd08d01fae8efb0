"""Records held in memory until a value is NaN or infinite."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumper.writing import nan_trigger as on_nan
from dumper.writing.nan_trigger import NanSignal, NanTrigger, has_nonfinite

CLEAN = False
BROKEN = True


@pytest.mark.parametrize(
    "dtype",
    [
        np.float16,
        np.float32,
        np.float64,
        np.complex64,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    ],
)
def test_a_nan_is_seen_in_every_floating_type(dtype: type) -> None:
    array = np.ones((3, 5), dtype)
    assert not has_nonfinite(array)
    array[2, 4] = np.nan
    assert has_nonfinite(array)


def test_infinity_counts_and_integers_cannot_fire() -> None:
    assert has_nonfinite(np.array([1.0, -np.inf], ml_dtypes.bfloat16))
    assert not has_nonfinite(np.array([2**62]))
    assert not has_nonfinite(np.array([True]))
    assert not has_nonfinite(np.zeros(0, np.float32))


def test_the_last_steps_are_written_and_everything_after() -> None:
    trigger: NanTrigger[str] = NanTrigger(keep_steps=2, budget_bytes=1 << 20)
    for step in range(5):
        assert trigger.offer(step, f"{step}a", 16, nonfinite=CLEAN) == []
        assert trigger.offer(step, f"{step}b", 16) == []
    assert trigger.offer(5, "5a", 16, nonfinite=CLEAN) == []
    assert trigger.offer(5, "5b", 16, nonfinite=BROKEN) == ["3a", "3b", "4a", "4b", "5a", "5b"]
    assert trigger.fired
    assert trigger.offer(6, "6a", 16, nonfinite=CLEAN) == ["6a"]
    assert trigger.held_bytes == 0


def test_memory_is_bounded_but_the_step_under_way_is_kept() -> None:
    trigger: NanTrigger[int] = NanTrigger(keep_steps=10, budget_bytes=100)
    for step in range(4):
        trigger.offer(step, step, 60, nonfinite=CLEAN)
    assert trigger.held_bytes <= 100
    assert trigger.offer(3, 99, 400, nonfinite=BROKEN) == [3, 99]


def test_one_rank_sets_off_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_nan, "_LOOK_SECONDS", 0.0)
    first, second = (NanTrigger[str](1, 1 << 20, NanSignal(tmp_path)) for _ in range(2))
    for step in range(3):
        assert first.offer(step, f"first {step}", 16, nonfinite=CLEAN) == []
        assert second.offer(step, f"second {step}", 16, nonfinite=CLEAN) == []
    assert second.offer(3, "second 3", 16, nonfinite=BROKEN) == ["second 2", "second 3"]
    assert first.offer(3, "first 3", 16, nonfinite=CLEAN) == ["first 2", "first 3"]
    later = NanTrigger[str](1, 1 << 20, NanSignal(tmp_path))  # what an earlier process left is not for it
    assert later.offer(0, "later", 16, nonfinite=CLEAN) == []


def test_another_rank_can_fire_it() -> None:
    trigger: NanTrigger[int] = NanTrigger(keep_steps=0, budget_bytes=100)
    trigger.offer(0, 1, 1, nonfinite=CLEAN)
    trigger.offer(1, 2, 1, nonfinite=CLEAN)
    assert trigger.fire() == [2]
    assert trigger.fire() == []


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, not -1"):
        NanTrigger(keep_steps=-1, budget_bytes=1)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 50)), max_size=40), st.integers(0, 5))
def test_nothing_is_written_twice_or_out_of_order(moves: list[tuple[int, int]], keep_steps: int) -> None:
    trigger: NanTrigger[int] = NanTrigger(keep_steps=keep_steps, budget_bytes=200)
    step, written = 0, []
    for index, (advance, nbytes) in enumerate(moves):
        step += advance
        written += trigger.offer(step, index, nbytes, nonfinite=nbytes == 50)
    assert written == sorted(set(written))
    if trigger.fired:
        assert written[-1] == len(moves) - 1

"""What ``on_nan`` holds back, and how it is counted when a copy fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dumper.rules.levels import FULL, Level
from dumper.settings import Settings
from dumper.values.source import Source
from dumper.writing.holding import Holding
from dumper.writing.items import Description, Item, Submission, Watched


class FailedCopy:
    """A copy from a device that did not arrive."""

    nbytes = 16

    def __init__(self) -> None:
        self.released = 0

    def wait(self) -> memoryview:
        raise RuntimeError("device lost")

    def release(self) -> None:
        self.released += 1


def description(level: Level = FULL) -> Description:
    return Description(Source.of("x"), (), None, "float32", (4,), level, False)


def holding(folder: Path) -> tuple[Holding, list[tuple[int, str]]]:
    lost: list[tuple[int, str]] = []
    settings = Settings(enable=True, dir=str(folder), run="run", on_nan=1)
    return Holding(settings, lambda count, reason, message: lost.append((count, message))), lost


def test_a_value_whose_copy_fails_is_lost_and_not_held_back(tmp_path: Path) -> None:
    held, lost = holding(tmp_path)
    copy = FailedCopy()
    clean = Submission(description(), np.ones(4, np.float32).tobytes(), 0, 0)
    assert held.release([clean, Submission(description(), copy, 0, 0)]) == []
    assert held.held_back == 1
    assert lost == [(1, "x: the copy failed: device lost")]
    assert copy.released == 1


def test_statistics_that_do_not_arrive_lose_no_value(tmp_path: Path) -> None:
    held, lost = holding(tmp_path)
    copy = FailedCopy()
    assert held.release([Watched(copy, 0)]) == []
    assert [count for count, _ in lost] == [0]
    assert (held.held_back, copy.released) == (0, 1)


def test_all_that_waited_is_written_once_something_is_seen(tmp_path: Path) -> None:
    held, lost = holding(tmp_path)
    clean: list[Item] = [Submission(description(), np.ones(4, np.float32).tobytes(), step, 0) for step in range(4)]
    assert held.release(clean) == []
    assert held.held_back == 4
    seen = Watched(np.array([0, 0, 0, 0, 0, 1, 0], dtype="<f8").tobytes(), 3)
    assert held.release([seen]) == clean[2:]
    assert held.held_back == 2
    assert held.release([clean[0], seen]) == [clean[0]]
    assert lost == []

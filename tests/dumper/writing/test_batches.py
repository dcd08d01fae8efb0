"""Steps and their records are written together, and what of them a full disk takes is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dumper import open_run
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from dumper.writing import rank_file, writer
from dumper.writing.items import SmallRecord
from dumper.writing.record_encoder import EncodedBatch, RecordEncoder

STEPS, VALUES = 6, 7


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Whose writer writes when it is asked to."""
    monkeypatch.setattr(writer, "NAP", 30.0)
    monkeypatch.setattr(writer, "LONG_NAP", 30.0)
    made = Recorder(Settings().changed(enable=True, control=False, dir=str(tmp_path), run="run"))
    yield made
    made.close()


def record_steps(recorder: Recorder) -> None:
    for step in range(STEPS):
        recorder.step()
        for value in range(VALUES):
            recorder.dump("x", np.full(50, 10 * step + value), part=value)


class Writes:
    """Counts writes, and has those behind a number of bytes fail, as a full disk does."""

    def __init__(self, room: int | None = None) -> None:
        self.count = 0
        self._room = room
        self._write = rank_file.write_whole

    def __call__(self, descriptor: int, buffers: Sequence[Any]) -> None:
        self.count += 1
        if self._room is None:
            return self._write(descriptor, buffers)
        content = b"".join(map(bytes, buffers))
        some, self._room = content[: self._room], max(0, self._room - len(content))
        os.write(descriptor, some)
        if len(some) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None


def test_one_write_for_many_steps(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.dump("first", 1)  # what opens the file
    recorder.flush()
    writes = Writes()
    monkeypatch.setattr(rank_file, "write_whole", writes)
    record_steps(recorder)
    recorder.flush()
    assert writes.count == 1
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert not run.problems
    assert list(run.steps) == list(range(STEPS + 1))
    assert [int(record.array()[0]) for record in run.records[1:]] == [
        10 * step + value for step in range(STEPS) for value in range(VALUES)
    ]
    assert [record.step for record in run.records[1:]] == [step + 1 for step in range(STEPS) for _ in range(VALUES)]


@pytest.mark.parametrize("room", range(0, 40_000, 1511))
def test_a_full_disk_keeps_the_first_frames(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    recorder.dump("first", 1)
    recorder.flush()
    with monkeypatch.context() as patches:
        patches.setattr(rank_file, "write_whole", Writes(room))
        record_steps(recorder)
        recorder.flush()
    path = recorder.settings.run_path
    recorder.dump("last", 2)
    recorder.close()
    run = open_run(path)
    kept = [int(record.array()[0]) for record in run.records if record.name == "x"]
    assert kept == [10 * step + value for step in range(STEPS) for value in range(VALUES)][: len(kept)]
    assert len(kept) + run.losses == STEPS * VALUES
    assert len(kept) == 0 if room < 500 else len(kept) >= room // 1000 - 5 or len(kept) == STEPS * VALUES
    assert [record.name for record in run.records[:: len(kept) + 1]] == ["first", "last"]
    # Each step that a record belongs to is there, and no other than one that nothing of followed.
    steps = list(run.steps)
    assert steps == sorted(set(steps))
    assert {record.step for record in run.records if record.name == "x"} <= set(steps)
    assert {problem.kind for problem in run.problems} <= {"lost"}


def test_what_cannot_be_encoded_leaves_the_rest_whole(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours, or a lack of memory, in the middle of a batch."""
    recorder.dump("first", 1)
    recorder.flush()
    together = RecordEncoder._encode_together

    def out_of_memory(self: RecordEncoder, records: list[SmallRecord], batch: EncodedBatch) -> None:
        if records[0][0].source.name != "y":
            return together(self, records, batch)
        together(self, records[:3], batch)
        raise MemoryError

    monkeypatch.setattr(RecordEncoder, "_encode_together", out_of_memory)
    recorder.step()
    recorder.dump("x", np.arange(5000))
    recorder.step()
    for part in range(6):
        recorder.dump("y", np.zeros(5), part=part)
    recorder.flush()
    recorder.step()
    recorder.dump("z", np.zeros(5))
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert [record.name for record in run.records] == ["first", "x", "z"]
    assert list(run.steps) == [0, 1, 2, 3]
    assert run.records[1].array().tolist() == list(range(5000))
    assert {problem.kind for problem in run.problems} <= {"lost"}

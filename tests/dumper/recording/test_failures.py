"""A failure to record never breaks the model: it is logged once, and counted in the run."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dumper import open_run
from dumper.cli import main
from tests.dumper.recording.conftest import Recording


def _kinds(run: Any) -> list[str]:
    return [problem.kind for problem in run.problems]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(object, "a object cannot be recorded", id="object"),
        pytest.param(lambda: torch.zeros(3, device="meta"), "meta device", id="meta"),
        pytest.param(lambda: torch.eye(3).to_sparse(), "dump value.to_dense()", id="sparse"),
        pytest.param(lambda: torch.eye(3).to_sparse_csr(), "dump value.to_dense()", id="sparse-csr"),
        pytest.param(
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "quantized", id="quantised"
        ),
        pytest.param(lambda: __import__("numpy").array(["a", None]), "dtype object cannot be recorded", id="objects"),
    ],
)
def test_what_cannot_be_recorded_is_counted_said_once_and_costs_nothing_else(
    recording: Recording, caplog: pytest.LogCaptureFixture, value: Any, reason: str
) -> None:
    recorder = recording.start()
    recorder.dump("before", torch.ones(2))
    for _ in range(3):
        recorder.dump("bad", value())
    recorder.dump("after", torch.ones(2))
    run = recording.read()
    assert [record.name for record in run.records] == ["before", "after"]
    assert run.losses == 3
    assert _kinds(run) == ["lost"]
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(messages) == 1
    assert reason in messages[0]


def test_ls_shows_losses(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = recording.start()
    recorder.dump("good", 1)
    recorder.dump("bad", object())
    recording.close()
    assert main(["ls", str(recording.path)]) == 0
    captured = capsys.readouterr()
    assert "1 lost" in captured.out
    assert "1 values could not be encoded" in captured.err


def test_a_run_of_which_everything_was_lost_opens(recording: Recording) -> None:
    recording.start().dump("bad", object())
    run = recording.read()
    assert (len(run.records), run.losses) == (0, 1)


def test_a_bad_level_at_a_call_falls_back(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    recording.start().dump("x", torch.ones(2), level="statz")
    assert recording.read().records[0].level == "full"
    assert "statz" in caplog.text


def test_a_directory_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("in the way")
    recorder = Recording(tmp_path).start()
    for _ in range(3):
        recorder.dump("x", torch.ones(3))
    recorder.flush()
    state = recorder.state()
    recorder.close()
    assert state["lost_writing"] == 3
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


def test_a_directory_that_disappears_is_made_again_and_the_loss_counted(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dumper.writing.rank_stream._CHECK_SECONDS", 0.0)
    recorder = recording.start()
    for number in range(5):
        recorder.dump("x", torch.full((3,), float(number)))
    recorder.flush()
    shutil.rmtree(recording.path)
    for number in range(5, 8):
        recorder.dump("x", torch.full((3,), float(number)))
        recorder.flush()
    run = recording.read()
    assert [float(record.array()[0]) for record in run.records] == [5.0, 6.0, 7.0]
    assert run.losses == 5


def test_what_cannot_be_encoded_leaves_the_records_beside_it_as_they_are(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever a file cannot hold is refused before; should something pass, the writer refuses it.
    monkeypatch.setattr("dumper.writing.items.LONGEST_TEXT", 1 << 70)
    monkeypatch.setattr("dumper.recording.session.as_scalars", lambda tags: tuple(tags.items()))
    recorder = recording.start()
    for number in range(6):
        recorder.dump("x", torch.full((3,), float(number)))
        recorder.dump("too large a tag", torch.zeros(3), tag=1 << 70)
    run = recording.read()
    assert [(record.name, record.occurrence, float(record.array()[0])) for record in run.records] == [
        ("x", number, float(number)) for number in range(6)
    ]
    assert run.losses == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("elements", [1000, 100_000], ids=["small records", "large records"])
def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture, elements: int) -> None:
    recording = Recording(small_disk)
    recorder = recording.start()
    calls = 8_000_000 // (4 * elements)
    for number in range(calls):
        recorder.dump("x", torch.full((elements,), float(number)))
    recorder.flush()
    run = recording.read()
    assert 0 < len(run.records) < calls
    assert len(run.records) + run.losses == calls
    # Every record that is there is whole, and nothing is in the wrong place.
    assert all(record.is_intact() and (record.array() == record.occurrence).all() for record in run.records)
    assert main(["verify", str(recording.path)]) == 0
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "No space left on device" in errors[0].getMessage()


def test_recording_goes_on_when_the_disk_has_room_again(small_disk: Path) -> None:
    recording = Recording(small_disk)
    recorder = recording.start()
    filler = small_disk / "filler"
    recorder.dump("x", torch.zeros(1000))
    recorder.flush()
    filler.write_bytes(bytes(2 * 1024 * 1024 - 64 * 1024 - 3 * 4096))
    for _ in range(50):
        recorder.dump("x", torch.ones(1000))
    recorder.flush()
    assert recorder.state()["lost_writing"] > 0
    filler.unlink()
    recorder.dump("x", torch.full((1000,), 2.0))
    run = recording.read()
    assert float(run.records[-1].array()[0]) == 2.0
    assert len(run.records) + run.losses == 52


def test_a_read_only_directory(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    recorder = Recording(small_disk).start()
    for _ in range(3):
        recorder.dump("x", torch.ones(3))
    recorder.flush()
    assert recorder.state()["lost_writing"] == 3
    assert caplog.text.count("cannot be written: Read-only file system") == 1


def test_two_processes_that_claim_one_rank_file(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    first = recording.start()
    first.dump("x", 1)
    first.flush()
    second = Recording(recording.folder).start()
    for _ in range(3):
        second.dump("y", 2)
    second.close()
    first.dump("x", 2)
    run = recording.read()
    assert [record.name for record in run.records] == ["x", "x"]
    assert run.losses == 3
    assert "a process that is still running" in caplog.text
    assert "found the rank's file already taken" in run.problems[0].message


def test_an_earlier_run_is_not_overwritten(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    recording.start().dump("x", 1)
    recording.close()
    before = (recording.path / "rank-00000.msgpack").read_bytes()
    recording.start().dump("x", 2)
    recording.close()
    assert (recording.path / "rank-00000.msgpack").read_bytes() == before
    assert "Set TENSORTAP_RUN to another name" in caplog.text
    assert open_run(recording.path).losses == 1


@pytest.mark.parametrize("policy", ["wait", "drop"])
def test_the_memory_budget(recording: Recording, policy: str) -> None:
    recorder = recording.start(memory_budget=1 << 20, when_full=policy)
    calls = 60
    for number in range(calls):
        recorder.dump("x", torch.full((100_000,), float(number)))
    run = recording.read()
    assert len(run.records) + run.losses == calls
    assert (run.losses == 0) or policy == "drop"
    assert all((record.array() == record.array()[0]).all() for record in run.records)


def test_a_value_larger_than_the_budget_is_recorded(recording: Recording) -> None:
    recorder = recording.start(memory_budget=1000)
    recorder.dump("x", torch.ones(10_000))
    recorder.dump("x", torch.ones(10_000))
    assert len(recording.read().records) == 2


def test_segments_roll_over(recording: Recording) -> None:
    recorder = recording.start(segment_size=200_000)
    for number in range(40):
        recorder.dump("x", torch.full((5_000,), float(number)), number=number)
        recorder.flush()
    files = sorted(path.name for path in recording.path.glob("*.msgpack"))
    assert files[:2] == ["rank-00000.0001.msgpack", "rank-00000.0002.msgpack"]
    run = recording.read()
    assert [record.tags["number"] for record in run.records] == list(range(40))
    assert [float(record.array()[0]) for record in run.records] == list(range(40))
    assert not run.problems

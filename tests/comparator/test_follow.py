"""``--follow``: runs that a recorder is writing meanwhile; and what an interrupt leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparator import follow as following
from comparator import prepared
from comparator.cli import main
from comparator.engine.processes import ForkedProcesses
from comparator.engine.protocol import InThisProcess
from dumper.recording.recorder import Recorder

STEPS = 4


class Writer:
    """A recorder that writes a step whenever it is told to."""

    def __init__(self, path: Path, fault_at: int | None = None) -> None:
        self._fault_at = fault_at
        self.step = -1
        path.mkdir(exist_ok=True)  # a run is followed from when there is its folder
        self.recorder = Recorder()
        self.recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)

    def write(self) -> None:
        """One step, on the disk afterwards."""
        self.step += 1
        self.recorder.step()
        value = np.random.default_rng(self.step).normal(size=(4, 8)).astype(np.float32)
        if self.step == self._fault_at:
            value = value * 1.5
        for layer in range(2):
            self.recorder.dump("hidden", value + layer, dims="t h", layer_id=layer)
        self.recorder.flush()


def whole(path: Path) -> Path:
    writer = Writer(path)
    for _ in range(STEPS):
        writer.write()
    writer.recorder.close()
    return path


@contextmanager
def at_every_look(monkeypatch: pytest.MonkeyPatch, doing: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Do something, in place of waiting, between two looks at the files; the last of it again and again."""
    left = list(doing)

    def wait(_: float) -> None:
        (left.pop(0) if len(left) > 1 else left[0])()

    monkeypatch.setattr(following.time, "sleep", wait)
    monkeypatch.setattr(following.follow, "__kwdefaults__", {"wait": wait})
    yield


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def findings(lines: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    return [
        (line["location"]["step"], line["tags"]["layer_id"], line["category"])
        for line in lines
        if line["type"] == "comparison_tensor"
    ]


def test_steps_are_reported_as_they_become_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = whole(tmp_path / "baseline")
    writer = Writer(tmp_path / "target")
    seen: list[int] = []

    def write_on() -> None:
        seen.append(len(findings(printed(capsys))))
        if writer.step < STEPS - 1:
            writer.write()
        else:
            writer.recorder.close()

    arguments = [str(baseline), str(tmp_path / "target"), "--follow", "--output-format", "json"]
    with at_every_look(monkeypatch, [write_on]):
        assert main(arguments) == 0
    last = printed(capsys)
    assert seen == [0, 0, 2, 2, 2][: len(seen)], "a step is complete once the next one has begun"
    assert findings(last) == [(3, "0", "passed"), (3, "1", "passed")]
    assert last[-1]["type"] == "summary"
    assert last[-1]["passed"] == 2 * STEPS


def test_the_first_failure_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = whole(tmp_path / "baseline")
    writer = Writer(tmp_path / "target", fault_at=1)
    with at_every_look(monkeypatch, [writer.write]):
        assert main([str(baseline), str(tmp_path / "target"), "--follow", "-x", "--output-format", "json"]) == 1
    found = findings(printed(capsys))
    assert found[-1] == (1, "0", "failed")
    assert [one for one in found if one[2] == "failed"] == [(1, "0", "failed")]
    assert writer.step < STEPS - 1
    writer.recorder.close()


def _write_and_die(path: Path) -> None:
    writer = Writer(path)
    for _ in range(2):
        writer.write()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_whose_process_is_gone_is_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = whole(tmp_path / "baseline")
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path / "target",))
    process.start()
    process.join()
    arguments = [str(baseline), str(tmp_path / "target"), "--output-format", "json"]
    alone = main(arguments)
    without = printed(capsys)
    assert main([*arguments, "--follow"]) == alone
    out, said = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert "the processes of the target are gone and did not end their recording" in said
    assert sorted(findings(lines)) == sorted(findings(without))
    assert lines[-1] == without[-1]


def test_an_interrupt_while_it_waits_prints_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = whole(tmp_path / "baseline")
    writer = Writer(tmp_path / "target")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with at_every_look(monkeypatch, [writer.write, writer.write, writer.write, interrupt]):
        assert main([str(baseline), str(tmp_path / "target"), "--follow", "--output-format", "json"]) == 130
    lines = printed(capsys)
    assert {step for step, _, _ in findings(lines)} == {0, 1}
    assert [note["category"] for note in lines[-1]["errors"]] == ["interrupted"]
    writer.recorder.close()


def test_an_interrupt_while_it_compares_prints_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, target = whole(tmp_path / "baseline"), whole(tmp_path / "target")
    real = InThisProcess.results

    def interrupted(self: InThisProcess, units: Any, measure: Any) -> Iterator[Any]:
        yield next(iter(real(self, units, measure)))
        raise KeyboardInterrupt

    monkeypatch.setattr(InThisProcess, "results", interrupted)
    assert main([str(baseline), str(target), "--output-format", "json", "--jobs", "1"]) == 130
    lines = printed(capsys)
    assert findings(lines) == [(step, "0", "passed") for step in range(STEPS)]
    assert [note["category"] for note in lines[-1]["errors"]] == ["interrupted"]
    assert lines[-1]["exit_code"] == 1


def interrupted_in_a_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, after: int) -> None:
    """An interrupt of this process once it has the first results, while a worker measures the next one."""
    true_results, true_measure, here = ForkedProcesses.results, prepared.measure_unit, os.getpid()

    def results(self: ForkedProcesses, units: Any, measure: Any) -> Iterator[Any]:
        for number, one in enumerate(true_results(self, units, measure), 1):
            yield one
            (folder / str(number)).touch()

    def measure(unit: Any, *arguments: Any) -> Any:
        if unit.number >= after and not (folder / "sent").exists():
            deadline = time.monotonic() + 60
            while not (folder / str(after)).exists() and time.monotonic() < deadline:
                os.sched_yield()
            (folder / "sent").touch()
            os.kill(here, signal.SIGINT)
            time.sleep(60)
        return true_measure(unit, *arguments)

    monkeypatch.setattr(ForkedProcesses, "results", results)
    monkeypatch.setattr(prepared, "measure_unit", measure)


@pytest.mark.parametrize("flags", [[], ["--follow"]])
def test_an_interrupt_while_processes_compare_prints_what_was_found(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, target = whole(tmp_path / "baseline"), whole(tmp_path / "target")
    (tmp_path / "flags").mkdir()
    interrupted_in_a_worker(monkeypatch, tmp_path / "flags", after=1)
    assert main([str(baseline), str(target), "--output-format", "json", "--jobs", "2", *flags]) == 130
    lines = printed(capsys)
    assert findings(lines) == [(step, "0", "passed") for step in range(STEPS)]
    assert [note["category"] for note in lines[-1]["errors"]] == ["interrupted"]
    assert lines[-1]["exit_code"] == 1
    assert not multiprocessing.active_children()


def test_a_run_that_is_deleted_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = whole(tmp_path / "baseline")
    writer = Writer(tmp_path / "target")

    def delete() -> None:
        writer.recorder.close()
        shutil.rmtree(tmp_path / "target")

    def too_late() -> None:
        raise AssertionError("it waits for a run that is gone")

    arguments = [str(baseline), str(tmp_path / "target"), "--follow", "--output-format", "json"]
    with at_every_look(monkeypatch, [writer.write, writer.write, delete, too_late]):
        assert main(arguments) == 2
    out, said = capsys.readouterr()
    assert [json.loads(line)["location"]["step"] for line in out.splitlines()] == [0, 0]
    assert "--follow: the target is gone" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--token-aligner", "smart"], "--follow compares step by step and --token-aligner smart joins all steps"),
        (["--target-path", "nowhere"], "--follow: nowhere is no directory on this machine"),
    ],
)
def test_what_cannot_be_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    baseline = whole(tmp_path / "baseline")
    target = [] if "--target-path" in flags else [str(baseline)]
    assert main([str(baseline), *target, "--follow", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_followed_while_a_thread_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = whole(tmp_path / "baseline")
    (tmp_path / "target").mkdir()
    writing = threading.Thread(target=whole, args=(tmp_path / "target",))
    writing.start()
    assert main([str(baseline), str(tmp_path / "target"), "--follow", "--output-format", "json"]) == 0
    writing.join()
    found = findings(printed(capsys))
    assert sorted(found) == [(step, layer, "passed") for step in range(STEPS) for layer in "01"]

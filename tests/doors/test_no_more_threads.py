"""Where no thread can be started, as in a control group that has all it may have, everything goes on without."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from io import StringIO
from multiprocessing.context import ForkProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from comparator.engine.processes import ForkedProcesses
from comparator.measure import kernel
from comparator.measure.kernel import measure_sums
from dumper.control import http
from dumper.convert.cli import convert
from dumper.format import checking
from dumper.format.status import read_status
from dumper.readers.sglang import facts, plain_pt
from dumper.readers.streams.verify import verify_run
from dumper.reading.open import open_run
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from dumper.storage.places import _at_once
from tensortap.progress import in_terminal
from tensortap.thread_pool import ThreadPool
from testbed.forked import ForkHost
from tests.comparator.test_engine import UNITS, numbered, rows_of
from tests.dumper.convert.dumps import DumpWriter

start, begin = threading.Thread.start, _thread.start_new_thread


class Limit:
    """How many threads can be started from now on."""

    left = 0

    def start(self, thread: threading.Thread) -> None:
        self._count()
        start(thread)

    def begin(self, function: Callable[[], object], arguments: tuple[()]) -> int:
        self._count()
        return begin(function, arguments)

    def _count(self) -> None:
        if self.left <= 0:
            raise RuntimeError("can't start new thread")
        self.left -= 1


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    found = Limit()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: found.start(thread))  # noqa: PLW0108
    monkeypatch.setattr(_thread, "start_new_thread", found.begin)
    return found


def test_facts_of_files_are_read_when_they_are_asked_for(
    tmp_path: Path, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MOST_AT_ONCE", 2)
    for module in (facts, plain_pt):
        monkeypatch.setattr(module, "WORTH_A_THREAD", 2)
    dump = DumpWriter(tmp_path)
    for number in range(5):
        dump.write(0, 0, "x", torch.ones(number))
    run = open_run(tmp_path)
    run.read_ahead()
    assert [record.shape for record in run.records] == [(number,) for number in range(5)]


@pytest.mark.parametrize("left", [0, 1])
def test_large_pairs_are_measured_by_the_threads_that_there_are(
    limit: Limit, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "PIECE", 20_000)
    one, other = (np.full((1000, 64), value, np.float16) for value in (1, 2))
    seen: list[list[int]] = [[], [], []]
    limit.left = left
    before = [each.append for each in seen]
    sums, _ = measure_sums(one, other, by_row=True, by_channel=True, before=before, threads=4)
    assert limit.left == 0
    assert sums.differing == one.size
    for each in seen:  # whoever was to call it
        assert each == sorted(set(each))
        assert each[-1] == one.size


@pytest.mark.parametrize("left", [0, 1])
def test_a_pool_does_everything_once(limit: Limit, left: int) -> None:
    limit.left = left
    begun, may_go_on = threading.Event(), threading.Event()
    did: list[int] = []

    def first() -> None:
        begun.set()
        assert may_go_on.wait(60 if left else 0) or not left

    def fail() -> None:
        raise OSError("gone")

    with ThreadPool(3, "tensortap-test") as pool:
        futures: list[Future[Any]] = [pool.submit(first)]
        assert begun.wait(60)
        futures += [pool.submit(did.append, number) for number in range(5)]
        assert did == list(range(5)), "the one thread waits, so this one did it"
        failed = pool.submit(fail)
        may_go_on.set()
    assert did == list(range(5)), "what was in the queue was not done again"
    assert all(future.done() for future in futures)
    with pytest.raises(OSError, match="gone"):
        failed.result()
    assert list(_at_once(str, [Path("a"), Path("b")])) == ["a", "b"]


def test_a_pool_of_threads_that_can_be_had() -> None:
    with ThreadPool(2, "tensortap-test") as pool:
        assert list(pool.map(lambda number: (number, threading.current_thread().name[:14]), range(3))) == [
            (number, "tensortap-test") for number in range(3)
        ]


def test_files_of_torch_are_written(tmp_path: Path, limit: Limit) -> None:
    limit.left = 3  # of the recorder
    recorder = Recorder(Settings(enable=True, dir=str(tmp_path), run="run"))
    for number in range(3):
        recorder.dump("x", np.full(4, number))
    recorder.close()
    limit.left = 0
    assert not convert(tmp_path / "run", tmp_path / "pt", "pt").left_out
    run = open_run(tmp_path / "pt")
    assert [record.array().tolist() for record in run.records] == [[number] * 4 for number in range(3)]


@pytest.mark.parametrize("left", [0, 1])
def test_a_run_is_verified_by_the_threads_that_there_are(
    tmp_path: Path, limit: Limit, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(checking, "available_cores", lambda: 4)
    limit.left = 3  # of the recorder
    recorder = Recorder(Settings(enable=True, dir=str(tmp_path), run="run"))
    recorder.dump("x", np.zeros(1_000_000))
    recorder.close()
    limit.left = left
    assert verify_run(tmp_path / "run").lines == ["1 files, 1 records: every checksum is right"]
    assert limit.left == 0 or not checking.COMPILED


def test_a_bar_needs_none(limit: Limit) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100, color_system=None)
    with in_terminal(console, patience=0.0)("reading", 2) as advance:
        advance(1)
    assert "50%" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", [0, 2])
def test_as_many_processes_as_there_may_be(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    begin = BaseProcess.start

    def start_process(process: BaseProcess) -> None:
        nonlocal made
        if made >= processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made += 1
        begin(process)

    monkeypatch.setattr(ForkProcess, "start", start_process)
    results = ForkedProcesses(5).results(UNITS, numbered)
    if not processes:
        with pytest.raises(BlockingIOError):
            list(results)
        return
    found = list(results)
    assert list(map(rows_of, found)) == [rows_of(numbered(unit)) for unit in UNITS]
    assert len({one.profile for one in found}) <= processes


ENDING = """
import os, signal, sys, threading, time
import numpy as np
from dumper import dumper
start, names = threading.Thread.start, sys.argv[1].split(",")
def refuse(thread):
    if thread.name in names:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
for number in range(3):
    dumper.dump("x", np.full(4, number))
if sys.argv[2] == "SIGTERM":
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("missing", "ending"),
    [("tensortap-end", "exit"), ("tensortap-control", "exit"), ("tensortap-close", "SIGTERM")],
)
def test_a_recording_misses_nothing(tmp_path: Path, light_host: ForkHost, missing: str, ending: str) -> None:
    environment = {**os.environ, "TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": str(tmp_path), "TENSORTAP_RUN": "run"}
    done = light_host.run(ENDING, missing, ending, environment=environment)
    assert done.returncode == (-signal.SIGTERM if ending == "SIGTERM" else 0), done.stderr
    assert ("recording cannot be controlled" in done.stderr) == (missing == "tensortap-control")
    assert "was not recorded" not in done.stderr
    assert len(open_run(tmp_path / "run").records) == 3
    counts = read_status((tmp_path / "run" / "rank-00000.status").read_bytes())
    assert counts is not None
    assert counts["closed"] == 1


def test_recording_begins_once_there_is_a_thread(
    tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(Settings(enable=True, dir=str(tmp_path), run="run", control=False))
    for number in range(3):
        recorder.dump("x", np.full(4, number))
    assert [record.message for record in caplog.records if "x was not recorded: can't start" in record.message]
    assert "already written" not in caplog.text
    limit.left = 3
    recorder.dump("x", np.full(4, 3))
    recorder.close()
    assert [record.array().tolist() for record in open_run(tmp_path / "run").records] == [[3] * 4]


def test_control_that_cannot_be_served_says_so(tmp_path: Path, limit: Limit, caplog: pytest.LogCaptureFixture) -> None:
    assert http.serve(tmp_path, 0, "a token that is long enough") is None
    assert "can't start new thread" in caplog.text

"""However a process ends, what it recorded is there."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dumper import open_run
from dumper.format.run_files import status_path
from dumper.format.status import read_status
from dumper.readers.streams.verify import verify_run
from testbed.forked import ForkHost
from tests.dumper.recording.conftest import Recording

pytestmark = pytest.mark.slow

PREAMBLE = """
import os, signal, sys, threading, time
import numpy as np
from dumper import dumper
def record(count, size=64):
    for number in range(count):
        dumper.dump("x", np.full(size, number, dtype=np.int64))
"""
ENDINGS = {
    "normal exit": "record(500)",
    "uncaught exception": "record(500); raise RuntimeError('the model broke')",
    "sys.exit": "record(500); sys.exit(3)",
    "SIGTERM": "record(500); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
    "SIGTERM in a system call": """
record(500)
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
threading.Event().wait(60)
""",
    "SIGTERM with a handler of the program": """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
record(500)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
""",
    "exit while a thread records": """
threading.Thread(target=record, args=(500,)).start()
""",
    "child of multiprocessing": """
import multiprocessing
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=record, args=(500,))
    process.start()
    process.join()
""",
    "fork after start-up": """
dumper.step()
if os.fork() == 0:
    record(500)
    dumper.close()
    os._exit(0)
os.wait()
""",
    "SIGKILL when the writer is done": """
record(500)
deadline = time.monotonic() + 60
while dumper.state()["records"] < 500 and time.monotonic() < deadline:
    time.sleep(0.005)
os.kill(os.getpid(), signal.SIGKILL)
""",
    "SIGKILL after flush": "record(500); dumper.flush(); os.kill(os.getpid(), signal.SIGKILL)",
}


def _environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": str(folder), "TENSORTAP_CONTROL": "0", **more}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_lost(tmp_path: Path, light_host: ForkHost, ending: str) -> None:
    result = light_host.run(PREAMBLE + ENDINGS[ending], environment=_environment(tmp_path), timeout=100)
    run = open_run(tmp_path / "run")
    assert [int(record.array()[0]) for record in run.records] == list(range(500)), result.stderr
    assert run.losses == 0
    kinds = {problem.kind for problem in run.problems}
    assert kinds == ({"unclosed"} if "SIGKILL" in ending else set())
    if ending == "SIGTERM":
        assert result.returncode == -signal.SIGTERM
    if ending == "SIGTERM with a handler of the program":
        assert result.returncode == 5


def test_a_fork_in_the_middle_of_a_recording(tmp_path: Path, light_host: ForkHost) -> None:
    code = """
record(100)
child = os.fork()
record(100)
dumper.close()
if child == 0:
    os._exit(0)
os.wait()
"""
    result = light_host.run(PREAMBLE + code, environment=_environment(tmp_path), timeout=60)
    assert result.returncode == 0, result.stderr
    run = open_run(tmp_path / "run")
    # The file is the parent's; the child's records are counted, and said to be lost.
    assert len(run.records) == 200
    assert run.losses == 100
    assert verify_run(tmp_path / "run").intact
    assert "was already written by" in result.stderr


LOAD = "tests.dumper.recording.load"


def _kill_under_load(folder: Path, ranks: int, records: int) -> None:
    """Start ranks that record without pause, kill them all when each has written so many records, and check every
    record that is there."""
    # Forked from a process that has imported what they need: a hundred rounds start two hundred ranks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LOAD])
    program = importlib.import_module(LOAD).record_without_pause
    here, there = context.Pipe()
    processes = [context.Process(target=program, args=(str(folder), rank, ranks, there)) for rank in range(ranks)]
    deadline = time.monotonic() + 100
    try:
        for process in processes:
            process.start()
        for _ in processes:
            assert here.poll(100), "a rank does not start"
            here.recv()
        while min(_written(folder / "run", rank) for rank in range(ranks)) < records:
            assert time.monotonic() < deadline, f"no {records} records were written in time"
            time.sleep(0.001)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    _check_killed(folder / "run", ranks, records)


def _written(run: Path, rank: int) -> int:
    """How many records a rank says it has written."""
    path = status_path(run, rank)
    counts = read_status(path.read_bytes()) if path.exists() else None
    return 0 if counts is None else counts["written"]


def _check_killed(path: Path, ranks: int, records: int) -> None:
    if not records and not any(path.glob("*.msgpack")):
        return  # killed before there was anything
    run = open_run(path)
    assert verify_run(path).intact
    assert not {"corrupted", "unreadable"} & {problem.kind for problem in run.problems}
    for rank in range(ranks):
        # What was counted as written is in the file; the last write may not have been counted.
        assert len(run.select(rank=rank)) >= max(records, _written(path, rank))
    for rank in run.ranks:
        # Killed before its header was written, a rank knows nothing of itself, and has no records.
        assert run.headers[rank].world_size == ranks or not run.select(rank=rank)
        for name, stride in (("small", 1), ("large", 20)):
            numbers = []
            for record in run.select(name=name, rank=rank):
                array = record.array()
                assert (array == array[0]).all()
                numbers.append(int(array[0]))
            # In order and without a gap from the first on: only the newest were in memory.
            assert numbers == list(range(0, len(numbers) * stride, stride))


def test_kill_under_load(tmp_path: Path) -> None:
    _kill_under_load(tmp_path, ranks=2, records=2000)
    assert "unclosed" in {problem.kind for problem in open_run(tmp_path / "run").problems}


@pytest.mark.slow
def test_kill_at_200_random_moments(tmp_path: Path) -> None:
    generator = random.Random(3)
    for number in range(100):
        _kill_under_load(tmp_path / str(number), ranks=2, records=generator.choice((0, 1, generator.randrange(400))))


def test_what_was_in_memory_is_counted(tmp_path: Path) -> None:
    """A process that dies between the call and the write: the status block knows what was submitted."""
    code = """
from dumper.writing.writer import Writer
Writer._serve = lambda self, batch: time.sleep(60)
record(7)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", PREAMBLE + code], env=_environment(tmp_path), timeout=60, check=False)
    run = open_run(tmp_path / "run")
    assert run.losses == 7
    messages = [problem.message for problem in run.problems]
    assert any("7 values were still in memory when the process ended" in message for message in messages), messages


def test_importing_to_write_is_light() -> None:
    code = """
import sys
from dumper import dumper
print(sorted({'torch', 'pydantic', 'polars', 'numpy', 'rich', 'msgspec'} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_reading_imports_no_torch(recording: Recording) -> None:
    recorder = recording.start()
    recorder.dump("x", np.ones(3))
    recorder.dump("s", np.ones(3), level="stats")
    recording.close()
    code = f"""
import sys
from dumper import open_run
from dumper.format.run_files import status_path
from dumper.format.status import read_status
run = open_run({str(recording.path)!r})
run.records[0].array(), run.records[1].statistics, run.problems, run.to_polars()
print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"


def test_forks_that_record_before_their_parent(tmp_path: Path, light_host: ForkHost) -> None:
    """Workers of a data loader, for example: the first one has the rank's file, and nobody loses anything."""
    code = """
for _ in range(2):
    if os.fork() == 0:
        record(50)
        dumper.close()
        os._exit(0)
    os.wait()
record(100)
dumper.close()
print(os.getpid())
"""
    result = light_host.run(PREAMBLE + code, environment=_environment(tmp_path), timeout=60)
    assert result.returncode == 0, result.stderr
    beside = {int(path.name.removeprefix("process-")): path for path in (tmp_path / "run").glob("process-*")}
    runs = [open_run(path) for path in (tmp_path / "run", *beside.values())]
    assert sorted(len(run.records) for run in runs) == [50, 50, 100]
    assert len(open_run(beside[int(result.stdout)]).records) == 100
    assert [run.losses for run in runs] == [0, 0, 0]
    assert "a fork that recorded first; this process records into" in result.stderr
    assert {problem.kind for problem in runs[0].problems} == {"recorded_beside"}

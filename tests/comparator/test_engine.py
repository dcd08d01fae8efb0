"""Units of work in several processes: the same results, whatever becomes of the processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comparator.cli import main
from comparator.engine.choice import engine_for, threads_of
from comparator.engine.processes import ForkedProcesses
from comparator.engine.protocol import InThisProcess
from comparator.engine.schedule import AHEAD, MOST_AT_ONCE
from comparator.errors import ComparatorError
from comparator.measure.measurement import Failure, Skipped
from comparator.measure.units import Row, Unit, UnitResult
from dumper.recording.recorder import Recorder
from tensortap.cores import available_cores

UNITS = [Unit(number, (2 * number, 2 * number + 1)) for number in range(41)]


def numbered(unit: Unit) -> UnitResult[int]:
    rows = tuple(Row(pair, 0, Skipped("x", "y", f"pair {pair}")) for pair in unit.pairs)
    return UnitResult(unit, rows, os.getpid())


def rows_of(result: UnitResult[int]) -> list[tuple[int, int, tuple[int, bytes]]]:
    """The rows of a result, wherever it comes from."""
    return [(row.pair, row.part, row.packed) for row in result.rows]


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("jobs", [1, 2, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 41])
def test_results_come_in_order(jobs: int, count: int) -> None:
    found = list(ForkedProcesses(jobs).results(UNITS[:count], numbered))
    expected = [(unit, rows_of(numbered(unit))) for unit in UNITS[:count]]
    assert [(one.unit, rows_of(one)) for one in found] == expected
    assert os.getpid() not in {one.profile for one in found}
    assert len({one.profile for one in found}) <= jobs


def test_an_exception_comes_where_its_unit_would(tmp_path: Path) -> None:
    def measure(unit: Unit) -> UnitResult[int]:
        if unit.number == 7:
            raise ComparatorError("concerns more than a pair")
        return numbered(unit)

    results = ForkedProcesses(2).results(UNITS, measure)
    assert [next(results).unit.number for _ in range(7)] == list(range(7))
    with pytest.raises(ComparatorError, match="concerns more than a pair"):
        next(results)


def ends(folder: Path, times: int, how: Callable[[], object]) -> Callable[[Unit], UnitResult[int]]:
    """Unit 5 ends its process so many times."""

    def measure(unit: Unit) -> UnitResult[int]:
        if unit.number == 5:
            tried = len(list(folder.iterdir()))
            if tried < times:
                (folder / str(tried)).touch()
                how()
        return numbered(unit)

    return measure


@pytest.mark.parametrize("how", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
def test_a_unit_whose_process_ended_is_tried_again(tmp_path: Path, how: Callable[[], object]) -> None:
    found = list(ForkedProcesses(2).results(UNITS, ends(tmp_path, 1, how)))
    assert [rows_of(one) for one in found] == [rows_of(numbered(unit)) for unit in UNITS]


@pytest.mark.parametrize(
    ("how", "said"),
    [(lambda: os.kill(os.getpid(), signal.SIGKILL), "by SIGKILL"), (lambda: os._exit(3), "with exit code 3")],
)
def test_a_unit_that_ends_every_process_fails(tmp_path: Path, how: Callable[[], object], said: str) -> None:
    found = list(ForkedProcesses(2).results(UNITS, ends(tmp_path, 99, how)))
    assert len(list(tmp_path.iterdir())) == 2
    for unit, one in zip(UNITS, found, strict=True):
        if unit.number != 5:
            assert rows_of(one) == rows_of(numbered(unit))
            continue
        assert [row.pair for row in one.rows] == [10, 11]
        for row in one.rows:
            assert isinstance(row.measurement, Failure)
            assert row.measurement.name == "worker-ended"
            assert said in row.measurement.message


def test_measuring_is_not_far_ahead(tmp_path: Path) -> None:
    most = 2 * AHEAD * MOST_AT_ONCE

    def measure(unit: Unit) -> UnitResult[int]:
        if unit.number == 0:
            deadline = time.monotonic() + 60
            while not (tmp_path / str(most - 1)).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            return UnitResult(unit, (), len(list(tmp_path.iterdir())))
        (tmp_path / str(unit.number)).touch()
        return numbered(unit)

    many = [Unit(number, (number,)) for number in range(4 * most)]
    first, *others = ForkedProcesses(2).results(many, measure)
    assert first.profile == most - MOST_AT_ONCE
    assert len(others) == 4 * most - 1


def test_what_is_little_is_compared_here() -> None:
    assert isinstance(engine_for(None, [], []), InThisProcess)
    assert isinstance(engine_for(1, [], []), InThisProcess)
    assert engine_for(3, [], []) == ForkedProcesses(3)


def test_cores_that_no_process_uses_are_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comparator.engine.choice.available_cores", lambda: 8)
    units = [Unit(number, (number,)) for number in range(3)]
    assert threads_of(InThisProcess(), units, None) == 8
    assert threads_of(InThisProcess(), units, 2) == 2
    assert threads_of(InThisProcess(), units, 1) == 1
    assert threads_of(ForkedProcesses(8), units, None) == 2
    assert threads_of(ForkedProcesses(2), units, 2) == 1
    assert threads_of(ForkedProcesses(20), units * 10, 20) == 1
    assert available_cores() >= 1


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5"])
def test_a_number_of_processes_that_makes_no_sense(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["a", "b", "--jobs", jobs])
    assert ended.value.code == 2
    assert f"--jobs/-j: {jobs!r} is not a number from 1 on" in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of 24 taps in 4 steps, one of them with a fault from the third tap on."""
    import torch

    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, control=False, dir=str(folder), run=name)
        for step in range(4):
            recorder.step()
            x = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
            for layer in range(24):
                x = x * 1.01 + (0.01 if name == "b" and layer > 2 else 0)
                recorder.dump("x", x.bfloat16(), "t h", layer_id=layer)
            recorder.dump("ids", [step, name])
        recorder.close()
    return folder / "a", folder / "b"


@pytest.mark.parametrize("more", [[], ["--preset", "raw"], ["--diff-threshold", "1e-3"]])
def test_reports_are_the_same(runs: tuple[Path, Path], tmp_path: Path, more: list[str]) -> None:
    reports = []
    for jobs in ("1", "3"):
        report = tmp_path / f"{jobs}.jsonl"
        code = main([*map(str, runs), "--jobs", jobs, "--report-path", str(report), *more])
        reports.append((code, report.read_text().replace(report.name, "")))
    assert reports[0] == reports[1]
    assert reports[0][0] == 1


def test_an_interrupt_leaves_no_process(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a whole group, as a terminal sends it."""
    program = f"""
import os, sys, time
from comparator.measure import units
measure = units.measure_unit
def slow(*arguments, **named):
    open({str(tmp_path)!r} + "/" + str(os.getpid()), "w").close()
    time.sleep(60)
import comparator.prepared
comparator.prepared.measure_unit = slow
from comparator.cli import main
sys.exit(main({[*map(str, runs), "--jobs", "2"]!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in printed
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)

"""Files of a run that somebody cuts, writes to, replaces or deletes while it is compared."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparator import compare
from comparator.cli import main
from comparator.elsewhere import OpenedAgain
from comparator.engine.opened import Worker, installed_version, mark_of
from comparator.measure import alike
from comparator.measure import measurer as measuring
from comparator.measure import units as measuring_units
from comparator.measure.measurement import Failure
from comparator.measure.units import UnitResult
from comparator.options import Options
from comparator.prepared import prepare
from dumper.cli import main as dumper
from dumper.format import checking
from dumper.reading import contents
from dumper.reading.open import open_run
from dumper.recording.recorder import Recorder
from tensortap import lost_pages
from tests.dumper.convert.dumps import DumpWriter

FILE = "rank-00000.msgpack"
needs_compiler = pytest.mark.skipif(
    lost_pages._compiled is None, reason="the module is not built, without which a cut file ends the process"
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, control=False, dir=str(folder), run=name)
        for step in range(2):
            recorder.step()
            x = np.random.default_rng(step).standard_normal((64, 64)).astype(np.float32)
            for layer in range(3):
                recorder.dump("x", x + layer, "t h", layer_id=layer)
        recorder.close()
    return folder


@pytest.fixture
def runs(recorded: Path, tmp_path: Path) -> tuple[str, str]:
    shutil.copytree(recorded, tmp_path / "runs")
    return str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b")


def before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, do: Callable[[], object]) -> None:
    """Do something once, when a function is called for the first time."""
    true, left = getattr(where, name), [do]

    def first(*arguments: Any, **named: Any) -> Any:
        if left:
            left.pop()()
        return true(*arguments, **named)

    monkeypatch.setattr(where, name, first)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are measured as large ones are."""
    monkeypatch.setattr(measuring_units, "measure_alike", lambda *_, **__: {})


def compared(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, list[Any], list[str]]:
    code = main([*runs, "--output-format", "json", "--jobs", "1", *flags])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    findings = [line for line in lines if line["type"].startswith("comparison")]
    assert len(findings) == 6
    return code, findings, [note["category"] for note in lines[-1]["errors"]]


@needs_compiler
@pytest.mark.parametrize(
    ("place", "flags"),
    [
        ((alike, "measure_many"), []),
        ((measuring_units, "pool_rows"), []),
        ((measuring, "measure_aligned"), ["--diff-threshold", "1e-3"]),
    ],
)
def test_cut_after_its_bytes_were_checked(
    runs: tuple[str, str],
    place: tuple[Any, str],
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if place == (measuring, "measure_aligned"):
        one_by_one(monkeypatch)
    before(monkeypatch, *place, lambda: os.truncate(f"{runs[1]}/{FILE}", 4096))
    code, findings, errors = compared(runs, capsys, *flags)
    assert code == 1
    assert "changed-while-read" in errors
    assert {finding["category"] for finding in findings} == {"errored"}
    assert all("was cut while it was read" in json.dumps(finding) for finding in findings)


@needs_compiler
def test_cut_and_written_anew(
    runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured of the pages that were gone is an error, although they are there again."""
    path = Path(runs[1], FILE)
    content = path.read_bytes()
    one_by_one(monkeypatch)
    before(monkeypatch, measuring, "measure_aligned", lambda: os.truncate(path, 4096))
    before(monkeypatch, measuring_units, "let_go", lambda: path.write_bytes(content))
    code, findings, errors = compared(runs, capsys, "--diff-threshold", "1e-3")
    assert (code, errors) == (1, ["changed-while-read"])
    # The first family, both steps of it, and the second record, a part of which is on a page that was lost.
    lost = [number for number, finding in enumerate(findings) if finding["category"] == "errored"]
    assert lost == [0, 1, 3]
    assert {finding["category"] for finding in findings} == {"errored", "passed"}


def test_written_to_in_its_place(
    runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(runs[0], FILE)
    content = path.read_bytes()
    before(monkeypatch, alike, "measure_many", lambda: path.open("r+b").write(content))
    code, findings, errors = compared(runs, capsys)
    assert (code, errors) == (1, ["changed-while-read"])
    assert main([*runs, "-q", "--allow", "changed-while-read"]) == 0
    assert {finding["category"] for finding in findings} == {"passed"}


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_deleted_or_replaced_by_another_file(
    runs: tuple[str, str], how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was opened stays as it was."""

    def change() -> None:
        for run in runs:
            if how == "deleted":
                shutil.rmtree(run)
            else:
                Path(run, "new").write_bytes(b"something else")
                os.replace(Path(run, "new"), Path(run, FILE))

    before(monkeypatch, alike, "measure_many", change)
    code, findings, errors = compared(runs, capsys)
    assert (code, errors) == (0, [])
    assert {finding["category"] for finding in findings} == {"passed"}


@needs_compiler
def test_a_run_that_is_cut_while_it_is_shown(
    runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before(monkeypatch, contents, "array_text", lambda: os.truncate(f"{runs[1]}/{FILE}", 4096))
    assert dumper(["show", runs[1], "x"]) == 1
    assert "was cut while it was read" in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize("cores", [1, 3])
def test_a_run_that_is_cut_while_it_is_verified(
    runs: tuple[str, str], cores: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(checking, "available_cores", lambda: cores)
    before(monkeypatch, checking, "Checks", lambda: os.truncate(f"{runs[1]}/{FILE}", 4096))
    assert dumper(["verify", runs[1]]) == 1
    said = capsys.readouterr()
    assert "was cut while it was read" in said.err
    assert "every checksum is right" not in said.out


@needs_compiler
def test_a_program_that_compares_lives_on(runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, alike, "measure_many", lambda: os.truncate(f"{runs[1]}/{FILE}", 4096))
    report = compare(*runs)
    assert len(report.of("errored")) == len(report) == 6
    assert "was cut while it was read" in report.describe()


@needs_compiler
def test_a_worker_on_another_machine_lives_on(runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(open_run(runs[0]), open_run(runs[1]), Options())
    worker = Worker[Any]()
    assert worker.begin(OpenedAgain.of(prepared), installed_version(), len(prepared.pairs)) is None
    before(monkeypatch, alike, "measure_many", lambda: os.truncate(f"{runs[1]}/{FILE}", 4096))
    (found,) = worker.measure([(prepared.units[0], mark_of(prepared.units[0], prepared.pairs))])
    assert isinstance(found, UnitResult)
    assert {type(row.measurement) for row in found.rows} == {Failure}


def ending_of(work: Callable[[], object]) -> int:
    """What a fork in which nothing takes the signal ends with: its exit code, less than 0 for a signal."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            faulthandler.disable()
            work()
            os._exit(0)
        os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signal_is_taken() -> bool:
    with open("/proc/self/status", encoding="ascii") as status:
        caught = next(line for line in status if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGBUS - 1) & 1)


@needs_compiler
@pytest.mark.parametrize("work", [lambda runs: main([*runs, "-q"]), lambda runs: compare(*runs)])
def test_the_signal_is_given_back(runs: tuple[str, str], work: Callable[[tuple[str, str]], object]) -> None:
    seen: list[bool] = []
    true = alike.measure_many

    def look(*arguments: Any, **named: Any) -> Any:
        seen.append(signal_is_taken())
        return true(*arguments, **named)

    def compared_in_between() -> None:
        assert not signal_is_taken()
        alike.measure_many = look
        work(runs)
        assert any(seen)
        assert not signal_is_taken()

    assert ending_of(compared_in_between) == 0


@needs_compiler
@pytest.mark.parametrize(("everywhere", "ending"), [(False, -signal.SIGBUS), (True, 0)])
def test_other_threads_of_a_program_keep_their_signals(tmp_path: Path, everywhere: bool, ending: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))

    def touch(data: mmap.mmap, where: int) -> None:
        assert data[where] == 0

    def work() -> None:
        with path.open("r+b") as file:
            data = mmap.mmap(file.fileno(), 0)
            os.truncate(path, 4096)
            earlier = lost_pages.lost_pages()
            with lost_pages.watching(everywhere=everywhere):
                touch(data, 8192)
                assert lost_pages.lost_pages() == earlier + 1
                other = threading.Thread(target=touch, args=(data, 16384))
                other.start()
                other.join()

    assert ending_of(work) == ending


def test_a_file_that_is_gone_when_it_is_to_be_opened(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Listed, and deleted before it is opened, as a link to nothing is."""
    os.symlink(f"{runs[1]}/nowhere", f"{runs[1]}/rank-00001.msgpack")
    code, findings, _ = compared(runs, capsys)
    assert code == 1
    assert {finding["category"] for finding in findings} == {"passed"}
    assert main([*runs]) == 1
    assert "rank-00001.msgpack cannot be read: No such file or directory (unreadable)" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["deleted", "cut", "emptied"])
def test_a_file_of_a_dump_that_is_gone_when_it_is_measured(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in "ab":
        writer = DumpWriter(tmp_path / side)
        paths = [writer.write(0, 0, f"x{number}", torch.arange(1 << 14) + number) for number in range(3)]

    def change() -> None:
        if how == "deleted":
            paths[1].unlink()
        else:
            os.truncate(paths[1], 1000 if how == "cut" else 0)

    before(monkeypatch, measuring, "measure_aligned", change)
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--jobs", "1", "--report-path", ""]) == 1
    printed = capsys.readouterr().out
    assert "2 passed, 0 failed; 0 skipped, 1 errored" in printed
    assert paths[1].name in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("how", ["written to", "replaced", "cut"])
def test_a_file_of_a_dump_that_changes_while_it_is_compared(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tensor, and a value that is none."""
    for side in "ab":
        writer = DumpWriter(tmp_path / side)
        paths = [writer.write(0, 0, "x", torch.arange(1 << 14)), writer.write(0, 0, "ids", [1, 2])]
    content = [path.read_bytes() for path in paths]

    def change() -> None:
        for path, was in zip(paths, content, strict=True):
            if how == "replaced":
                path.unlink()
            if how == "cut":
                os.truncate(path, 1000)
            else:
                path.write_bytes(was)

    before(monkeypatch, measuring_units, "let_go", change)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--jobs", "1", "--report-path", ""]
    assert main([*arguments, "--report-schema", "tensortap", "--output-format", "json"]) == 1
    (note,) = json.loads(capsys.readouterr().out.splitlines()[-1])["errors"]
    assert note["category"] == "changed-while-read"
    assert all(path.name in note["message"] for path in paths)
    assert main([*arguments, "-q"]) == (0 if how != "cut" else 1)

"""The real recorder in a process of its own: step rules, ``on_nan``, and ``ctl`` while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dumper import control, open_run
from dumper.adapters.protocol import Process
from dumper.control.cli import main
from dumper.control.controller import read_ranks
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from testbed.forked import light_host

STEPPING = """
import sys, time
import numpy as np
from dumper import dumper
value = np.zeros(4, np.float32)
for step in range(int(sys.argv[1])):
    with dumper.step():
        value[0] = np.nan if len(sys.argv) > 2 and step == int(sys.argv[2]) else step
        dumper.dump("a", value, layer_id=0)
        dumper.dump("b", value, layer_id=1)
    if len(sys.argv) > 3:
        time.sleep(float(sys.argv[3]))
dumper.close()
"""


def environment(run: Path, **settings: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("TENSORTAP_")},
        "TENSORTAP_DIR": str(run.parent),
        "TENSORTAP_RUN": run.name,
        **{f"TENSORTAP_{name.upper()}": value for name, value in settings.items()},
    }


def take_steps(*arguments: str, environment: dict[str, str]) -> None:
    """``STEPPING`` in a process of its own."""
    done = light_host().run(STEPPING, *arguments, environment=environment)
    assert done.returncode == 0, done.stderr


def recorded_steps(run: Path, **selection: Any) -> list[int | None]:
    return [record.step for record in open_run(run).select(**selection)]


@pytest.mark.parametrize(
    ("settings", "nan_at", "steps"),
    [
        ({"steps": "3-5"}, None, [3, 4, 5]),
        pytest.param({"steps": "every 4"}, None, [0, 4, 8], marks=pytest.mark.slow),
        pytest.param({"steps": "first 2, 9"}, None, [0, 1, 9], marks=pytest.mark.slow),
        ({"on_nan": "2"}, 6, [4, 5, 6, 7, 8, 9]),
        pytest.param({"on_nan": "0"}, 0, list(range(10)), marks=pytest.mark.slow),
    ],
)
def test_which_steps_are_recorded(
    tmp_path: Path, settings: dict[str, str], nan_at: int | None, steps: list[int]
) -> None:
    run = tmp_path / "run"
    nan = [] if nan_at is None else [str(nan_at)]
    take_steps("10", *nan, environment=environment(run, enable="1", control="0", **settings))
    assert recorded_steps(run, name="a") == steps
    assert recorded_steps(run, name="b") == steps
    assert open_run(run).losses == 0


@pytest.mark.slow
def test_without_a_nan_nothing_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    take_steps("10", environment=environment(run, enable="1", control="0", on_nan="2"))
    found = open_run(run)
    assert list(found.records) == []
    assert found.losses == 0
    (problem,) = found.problems
    assert "20 values were held back" in problem.message


@pytest.mark.parametrize("level", ["full", "stats", "sample(rows=2)", "sample(stride=7)", "hash"])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_nan_is_seen_whatever_is_kept_of_the_value(tmp_path: Path, level: str, kind: str) -> None:
    recorder = Recorder(Settings(enable=True, dir=str(tmp_path), run="run", control=False, on_nan=1, level=level))
    for step in range(6):
        recorder.step()
        value = torch.ones(20, 3)
        if step == 3:
            value[12, 1] = float("inf")  # in a row of none of the samples
        recorder.dump("x", value if kind == "tensor" else value.numpy())
    recorder.close()
    run = open_run(tmp_path / "run")
    assert [record.step for record in run.records] == [2, 3, 4, 5]
    assert run.losses == 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_records_nothing_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", STEPPING, "1000000", "-1", "0.002"],
        env=environment(run, enable="0", control="1"),
    ) as process:
        try:
            until(lambda: bool(read_ranks(run)))
            agreed = []
            for change in (["on"], ["filter", "layer_id", "==", "1"], ["off"]):
                assert main([str(run), "--json", "--wait", "60", *change]) == 0
                agreed.append(json.loads(capsys.readouterr().out)["effective"]["0"])
            assert main([str(run), "--json", "status"]) == 0
            (rank,) = json.loads(capsys.readouterr().out)
            assert rank["alive"]
            assert rank["state"]["settings"]["enable"] is False
            assert rank["state"]["settings"]["filter"] == "layer_id == 1"
            assert main([str(run), "filter", "layer_id =="]) == 2
            assert "filter" in capsys.readouterr().err
            assert main([str(run), "level", "loud"]) == 2
            assert "level" in capsys.readouterr().err
        finally:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
    on, narrowed, off = agreed
    assert recorded_steps(run, name="a") == list(range(on, narrowed))
    assert recorded_steps(run, name="b") == list(range(on, off))


def test_status_shows_what_is_agreed_and_not_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    recorder = Recorder(Settings(enable=True, dir=str(tmp_path), run="run"))
    recorder.step()
    recorder.dump("x", 1)
    until(lambda: bool(read_ranks(run)))

    def pending() -> list[dict[str, Any]]:
        assert main([str(run), "status", "--json"]) == 0
        (rank,) = json.loads(capsys.readouterr().out)
        found: list[dict[str, Any]] = rank["pending"]
        return found

    try:
        assert pending() == []
        assert main([str(run), "filter", "layer_id == 1"]) == 0
        capsys.readouterr()
        (change,) = pending()
        assert change["changes"] == {"filter": "layer_id == 1"}
        for columns in ("50", "300"):
            monkeypatch.setenv("COLUMNS", columns)
            assert main([str(run), "status"]) == 0
            shown = " ".join(capsys.readouterr().out.split())
            assert f"filter layer_id == 1 from step {change['step']}" in shown
        while recorder.settings.filter is None:
            recorder.step()
    finally:
        recorder.close()
    assert pending() == []


@pytest.mark.slow
def test_control_that_is_switched_off_leaves_no_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    take_steps("3", environment=environment(run, enable="1", control="0"))
    assert not (run / "control").exists()
    take_steps("3", environment=environment(tmp_path / "off", enable="0"))
    assert not (tmp_path / "off").exists()


@pytest.mark.slow
def test_a_process_that_ends_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    take_steps("3", environment=environment(run, enable="1"))
    (rank,) = read_ranks(run)
    assert (rank.ended, rank.step) == (True, 2)


def test_a_process_that_is_configured_in_its_code_is_controlled_before_its_first_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a server that ``patcher.apply`` has patched: its rank is known, and nothing was recorded."""
    for name in [name for name in os.environ if name.startswith("TENSORTAP_")]:
        monkeypatch.delenv(name)
    known = Process(1, 2, {}, {}, "sglang")
    monkeypatch.setattr(control, "describe_process", lambda in_full: known)
    recorder = Recorder()
    recorder.install_taps("m", ({"id": "m.f#1:x", "name": "x", "kind": "dump", "file": "m.py", "line": 1},), {})
    try:
        recorder.configure(enable=True, dir=str(tmp_path), run="first")
        recorder.configure(run="run")
        until(lambda: bool(read_ranks(tmp_path / "run")))
        assert main([str(tmp_path / "run"), "--json", "status"]) == 0
        (rank,) = json.loads(capsys.readouterr().out)
        assert (rank["rank"], rank["step"], rank["alive"]) == (1, -1, True)
        assert not any(rank.ended is False for rank in read_ranks(tmp_path / "first")), "it has left the first one"
    finally:
        recorder.close()

"""Whatever is in a recording, what is printed of it is one line where it should be, of bounded length, and moves no
cursor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from dumper import open_run
from dumper.cli import main
from dumper.format import frames
from tests.dumper.recording.conftest import Recording

EVIL = "\x1b[31mred\x1b[0m\nrank 0: all passed\r\x07\u202eabc\u2028\x9b5n"


def _file(folder: Path, *parts: tuple[str, dict[str, Any], tuple[bytes, ...]], rank: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    data = b""
    header = {"format": "tensortap", "version": 1, "rank": rank, "world_size": 1, "parallel": {EVIL: [0, 1]}}
    for kind, meta, payloads in (("header", {**header, "framework": EVIL}, ()), *parts):
        data += frames.encode_frame(kind, meta, len(data), payloads)
    (folder / f"rank-{rank:05d}.msgpack").write_bytes(data)
    return folder


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    tap = {"id": EVIL, "name": EVIL, "kind": "dump", "file": EVIL, "line": 3}
    shared = {"tags": {EVIL: EVIL}, "step": 0, "dims": EVIL, "tap": EVIL}
    return _file(
        tmp_path / f"run{EVIL.replace('/', '')}",
        ("taps", {"taps": [tap, {**tap, "id": EVIL + "2"}]}, ()),
        ("record", {"name": EVIL, "dtype": "float32", "shape": [2], **shared}, (bytes(8),)),
        ("record", {"name": EVIL + "value", **shared}, (msgpack.packb({EVIL: [EVIL]}),)),
        ("record", {"name": "damaged", "dtype": EVIL, "shape": [3], **shared}, (bytes(8),)),
        ("record", {"name": "compressed", "dtype": "int8", "shape": [3], "compression": EVIL, **shared}, (b"x",)),
    )


@pytest.mark.parametrize(
    "command",
    [
        ["ls"],
        ["ls", "--records"],
        ["ls", "--json"],
        ["ls", "--strict-taps"],
        ["show"],
        ["show", EVIL],
        ["show", "no" + EVIL],
        ["verify"],
        ["repair"],
        ["ls", "--filter", EVIL],
    ],
)
def test_names_and_messages_are_escaped(evil: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([command[0], str(evil), *command[1:]])
    captured = capsys.readouterr()
    for line in (captured.out + captured.err).splitlines():
        assert line.isprintable(), line
        assert not line.startswith("rank 0: all passed")


@pytest.mark.parametrize("action", [["status"], ["filter", EVIL], ["level", EVIL], ["steps", EVIL], ["on"]])
@pytest.mark.parametrize("there", [True, False])
def test_what_ctl_says_is_escaped(
    evil: Path, action: list[str], there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evil if there else evil.with_name(f"missing{evil.name}")
    assert main(["ctl", str(run), *action, "--timeout", "0"]) != 0
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert all(line.isprintable() for line in (captured.out + captured.err).splitlines())


def test_the_log_of_the_model_is_escaped(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    recording.start().dump(EVIL, object())
    recording.close()
    assert "was not recorded" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_large_values_are_shortened(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = recording.start()
    recorder.dump("list", list(range(100_000)))
    recorder.dump("nested", [[[list(range(50)) for _ in range(20)]] * 20])
    recorder.dump("text", "x" * 3_000_000)
    recorder.dump("bytes", bytes(3_000_000))
    recorder.dump("map", {str(number): number for number in range(100_000)})
    recorder.dump("large", bytes(17 << 20))
    recorder.dump("tensor", np.zeros((3000, 3000)))
    recording.close()
    assert main(["show", str(recording.path)]) == 0
    printed = capsys.readouterr().out
    assert len(printed) < 30_000
    assert "(100000 in all)" in printed
    assert "too large to show" in printed


def test_edges_of_large_tensors_of_small_floats(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    recording.start().dump("x", torch.full((2000, 2000), 1.5, dtype=torch.bfloat16))
    recording.close()
    assert main(["show", str(recording.path)]) == 0
    assert "1.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "layout",
    [
        {"rows": 10**9, "sequences": [["r", 0, 10**9]], "forward_mode": "extend"},
        {"rows": 5, "sequences": [["r", 0, 10**9]], "forward_mode": "extend"},
        {"rows": 10**9, "sequences": [], "forward_mode": "extend"},
        {"rows": -1, "sequences": [], "forward_mode": "extend"},
        {"rows": "5", "sequences": [["r", 0, 1]], "forward_mode": "extend"},
    ],
)
def test_claimed_layouts_are_not_believed(
    tmp_path: Path, layout: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = _file(tmp_path / "run", ("step", {"step": 0, "layout": layout}, ()))
    with pytest.raises(frames.FormatError, match="layout"):
        open_run(run).layout(0, 0)
    assert main(["verify", str(run)]) == 1
    assert "layout" in capsys.readouterr().out


def test_a_rank_number_that_no_run_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _file(tmp_path / "run", ("record", {"name": "x", "step": 0}, (b"\x01",)))
    for rank in (99_999_999, 10**40, 1_000_000):
        (run / f"rank-{rank}.msgpack").write_bytes((run / "rank-00000.msgpack").read_bytes())
        (run / f"rank-{rank}.status").write_bytes(b"")
    assert main(["ls", str(run)]) == 0
    captured = capsys.readouterr()
    assert len(captured.err) < 5000
    assert "99999999" in captured.err
    assert main(["verify", str(run)]) == 1


def test_a_compressed_value_that_no_memory_holds(
    recording: Recording, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording.start(compression="zstd").dump("x", np.zeros(1 << 20))
    recording.close()
    monkeypatch.setattr("dumper.readers.streams.record.LARGE_VALUE", 1000)
    monkeypatch.setattr("dumper.readers.streams.record.available_bytes", lambda: 1000)
    with pytest.raises(MemoryError, match="more than this machine has left"):
        open_run(recording.path).records[0].array()
    assert main(["show", str(recording.path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_pipe_and_a_full_device(recording: Recording) -> None:
    import subprocess
    import sys

    recording.start().dump("x", list(range(100)))
    recording.close()
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "dumper", "show", str(recording.path)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr

"""Damage to recorded files, from the file to the exit code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from comparator.cli import main
from dumper import open_run
from dumper.cli import main as dumper_main
from dumper.format import frames
from tests.comparator.fakes import FakeRecord, FakeRun, values
from tests.comparator.recording import write_run

FILE = "rank-00000.msgpack"


def record(path: Path, ranks: int = 1) -> Path:
    records = [
        FakeRecord("x", values(3, 4, seed=layer), rank, dims="t h # tp:replicated", tags={"layer_id": layer})
        for rank in range(ranks)
        for layer in range(8)
    ]
    return write_run(FakeRun(records, {rank: {"tp": (rank, ranks)} for rank in range(ranks)}), path)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return record(tmp_path / "whole")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_was_cut_anywhere(whole: Path, tmp_path: Path, share: float) -> None:
    cut = shutil.copytree(whole, tmp_path / "cut")
    content = (cut / FILE).read_bytes()
    (cut / FILE).write_bytes(content[: int(len(content) * share)])
    assert main([str(whole), str(cut)]) in (1, 2)
    assert main([str(cut), str(whole)]) in (1, 2)


def test_a_file_that_was_cut_between_two_records(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in the file itself is wrong; the counts beside it say what is missing."""
    cut = shutil.copytree(whole, tmp_path / "cut")
    at = [int(one.source.partition("@")[2]) for one in open_run(cut).records][3]
    (cut / FILE).write_bytes((cut / FILE).read_bytes()[:at])
    assert main([str(whole), str(cut)]) == 1
    output = capsys.readouterr().out
    assert "(missing-records)" in output
    assert "(partly-one-sided)" in output
    assert main([str(whole), str(cut), "--allow", "missing-records"]) == 1
    allowed = [flag for name in ("missing-records", "truncated", "partly-one-sided") for flag in ("--allow", name)]
    assert main([str(whole), str(cut), *allowed]) == 0


def test_a_repair_does_not_turn_a_failure_green(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flipped = shutil.copytree(whole, tmp_path / "flipped")
    content = bytearray((flipped / FILE).read_bytes())
    payload = values(3, 4, seed=2).tobytes()
    at = content.find(payload)
    assert at > 0
    content[at + 5] ^= 1
    (flipped / FILE).write_bytes(bytes(content))
    assert main([str(whole), str(flipped)]) == 1
    dumper_main(["repair", str(flipped)])
    capsys.readouterr()
    assert main([str(whole), str(flipped)]) == 1
    assert "(repaired)" in capsys.readouterr().out


def test_ranks_of_two_runs_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = record(tmp_path / "one", 2), record(tmp_path / "other", 2)
    assert main([str(one), str(other), "-q"]) == 0
    mixed = shutil.copytree(one, tmp_path / "mixed")
    for file in other.glob("rank-00001*"):
        shutil.copy(file, mixed)
    capsys.readouterr()
    assert main([str(one), str(mixed)]) == 1
    assert "(mixed-runs)" in capsys.readouterr().out


def test_worlds_of_two_sizes_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = record(tmp_path / "one", 2), record(tmp_path / "other", 3)
    mixed = shutil.copytree(one, tmp_path / "mixed")
    for file in other.glob("rank-00001*"):
        shutil.copy(file, mixed)
    assert main([str(one), str(mixed)]) == 1
    assert "(mixed-runs)" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_a_payload_that_is_shorter_than_its_shape(
    whole: Path, tmp_path: Path, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checksums are right, and what is written makes no sense: so many rows of a tensor of three, or a byte."""
    odd = tmp_path / "odd"
    odd.mkdir()
    content, position, written = (whole / FILE).read_bytes(), 0, b""
    while frames.decode_footer(content, position) is None:
        frame = frames.decode_frame(content, position)
        payloads = [bytes(frames.payload_view(content, one)) for one in frame.payloads]
        if frame.kind == "record":
            payloads = [one[: len(one) * kept // 3] + b"x" * (kept % 2) for one in payloads]
        if frame.kind != "index":
            written += frames.encode_frame(frame.kind, frames.decode_meta(frame.meta), len(written), tuple(payloads))
        position = frame.end
    (odd / FILE).write_bytes(written)
    assert main([str(whole), str(odd), "--allow", "unclosed"]) == 1
    printed = capsys.readouterr().out
    assert "0 passed, 0 failed; 0 skipped, 8 errored" in printed
    assert "(damaged-record)" in printed
    assert "Traceback" not in printed

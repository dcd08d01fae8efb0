"""Conversions between runs, SGLang's .pt files and safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open

from comparator import compare
from dumper import Run, open_run
from dumper.adapters.protocol import Process
from dumper.convert.cli import main
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from tests.dumper.convert.dumps import DumpWriter

DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "uint8",
    "bool",
    "complex64",
)


def _bits(dtype: str, shape: tuple[int, ...] = (3, 4)) -> torch.Tensor:
    """A tensor of random bits, NaN among them where the dtype has it."""
    wanted = getattr(torch, dtype)
    if dtype == "bool":
        return torch.rand(shape) < 0.5
    size = torch.empty(0, dtype=wanted).element_size()
    raw = torch.frombuffer(bytearray(os.urandom(size * int(np.prod(shape)))), dtype=torch.uint8)
    return raw.view(wanted).reshape(shape)


def _bytes(array: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Two ranks, two steps, every dtype."""
    writer = DumpWriter(tmp_path / "dump", {0: {"tp": (0, 2)}, 1: {"tp": (1, 2)}})
    for step in range(2):
        for rank in range(2):
            writer.batch(
                step, rank, [5, 6, 7] if step == 0 else [8], [0, 1, 2] if step == 0 else [3], [3 + step], ["a"]
            )
            for dtype in DTYPES:
                writer.write(step, rank, "x", _bits(dtype), dims="t h[tp]", layer_id=3, dtype=dtype)
            writer.write(step, rank, "x", torch.zeros(0, 4), layer_id=4)
            writer.write(step, rank, "config", {"a": [1, 2.5, None], "b": "text"})
            writer.write(step, rank, "grad__x", torch.ones(2), layer_id=3)
    return tmp_path / "dump"


def _record(path: Path) -> Path:
    """A run of ours with a token layout, a repeated record and a gradient's stream."""
    with mock.patch(
        "dumper.recording.session.describe_process", return_value=Process(0, 1, {"tp": (0, 1), "pp": (0, 1)})
    ):
        recorder = Recorder(Settings(enable=True, dir=str(path.parent), run=path.name))
        layout = TokenLayout("extend", (SequenceSpan("r", 0, 3),), 3, token_ids=np.array([5, 6, 7]))
        recorder.step(layout=layout)
        recorder.dump("x", torch.arange(6.0).reshape(3, 2).to(torch.bfloat16), dims="t h", layer_id=1)
        recorder.dump("x", torch.ones(3, 2), dims="t h", layer_id=1)
        recorder.dump("note", {"a": [1, "b"]})
        recorder.dump("summary", torch.ones(3, 2), level="stats")
        recorder.close()
    return path


def _same(one: Run, other: Run) -> None:
    names = [
        [(r.step, r.rank, r.name, dict(r.tags), r.occurrence, r.stream, r.dims) for r in run.records]
        for run in (one, other)
    ]
    assert names[0] == names[1]
    for left, right in zip(one.records, other.records, strict=True):
        assert (left.kind, left.dtype, left.shape) == (right.kind, right.dtype, right.shape)
        if left.kind == "tensor":
            assert _bytes(left.array()) == _bytes(right.array())
        else:
            assert left.value == right.value


def test_a_dump_becomes_a_run_and_a_dump_again_bit_for_bit(dump: Path, tmp_path: Path) -> None:
    assert main([str(dump), str(tmp_path / "run")]) == 0
    assert main([str(tmp_path / "run"), str(tmp_path / "again")]) == 0
    original, run, again = open_run(dump), open_run(tmp_path / "run"), open_run(tmp_path / "again")
    _same(original, run)
    _same(run, again)
    assert not run.problems
    assert run.losses == 0
    for step in run.steps:
        for rank in run.ranks:
            layouts = [one.layout(step, rank) for one in (original, run, again)]
            assert all(
                layout is not None and layout.sequences == layouts[0].sequences for layout in layouts if layouts[0]
            )
    assert run.headers[1].parallel["tp"] == (1, 2)


def test_the_run_compares_equal_to_its_dump(dump: Path, tmp_path: Path) -> None:
    assert main([str(dump), str(tmp_path / "run")]) == 0
    report = compare(dump, tmp_path / "run", filter='dtype == "float32"', equal_nan=True)
    assert report.passed
    assert len(report.of("passed")) == 2


def test_a_run_becomes_a_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(_record(tmp_path / "run")), str(tmp_path / "dump")]) == 1
    assert "summary of step 0, rank 0: recorded at level stats" in capsys.readouterr().err
    dump = open_run(tmp_path / "dump")
    first, second = dump.select(name="x", layer_id=1)
    assert (first.occurrence, second.occurrence, first.dims) == (0, 1, "t h")
    assert first.dtype == "bfloat16"
    assert second.array().tolist() == [[1, 1]] * 3
    layout = dump.layout(0, 0)
    assert layout is not None
    assert layout.sequences == (SequenceSpan("r", 0, 3),)
    assert dump.select(name="note")[0].value == {"a": [1, "b"]}


def test_safetensors_hold_the_same_bits(dump: Path, tmp_path: Path) -> None:
    assert main([str(dump), str(tmp_path / "out"), "--to", "safetensors"]) == 1  # values and request ids stay behind
    run = open_run(dump)
    with safe_open(tmp_path / "out" / "rank-00001" / "step-000001.safetensors", "pt") as file:
        metadata = file.metadata()
        for record in run.select(name="x", step=1, rank=1, layer_id=3):
            if record.stream == "value":
                found = file.get_tensor(f"x.layer_id=3.dtype={record.tags['dtype']}")
                assert found.reshape(-1).view(torch.uint8).numpy().tobytes() == _bytes(record.array())
        assert file.get_tensor("x.layer_id=3.grad").tolist() == [1, 1]
    assert (metadata["rank"], metadata["step"]) == ("1", "1")
    assert json.loads(metadata["dims"])["x.layer_id=3.dtype=bool"] == "t h[tp]"
    assert json.loads(metadata["parallel"]) == {"tp": [1, 2]}


def test_what_cannot_be_read_is_named_and_the_rest_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = DumpWriter(tmp_path / "dump")
    writer.write(0, 0, "x", torch.ones(2))
    writer.write(0, 0, "broken", torch.ones(2)).write_bytes(b"")
    assert main([str(tmp_path / "dump"), str(tmp_path / "run")]) == 1
    assert "name=broken" in capsys.readouterr().err
    assert [record.name for record in open_run(tmp_path / "run").records] == ["x"]


def test_large_values_are_written_side_by_side_and_damaged_ones_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    recorder.step(layout=TokenLayout("extend", (SequenceSpan("r", 0, 3),), 3))
    values = [torch.full((1 << 18,), float(number)) for number in range(5)]
    for number, value in enumerate(values):
        recorder.dump("x", value, layer_id=number)
        recorder.dump("small", value[:8], layer_id=number)
    recorder.close()
    (file,) = (tmp_path / "run").glob("rank-*.msgpack")
    data = bytearray(file.read_bytes())
    data[data.index(values[2].numpy().tobytes()) + 5] ^= 1
    data[data.rindex(values[3][:8].numpy().tobytes()) + 5] ^= 1
    file.write_bytes(data)
    assert main([str(tmp_path / "run"), str(tmp_path / "dump")]) == 1
    assert capsys.readouterr().err.count("its bytes do not match their checksum") == 2
    dump = open_run(tmp_path / "dump")
    for name, size, kept in (("x", 1 << 18, (0, 1, 3, 4)), ("small", 8, (0, 1, 2, 4))):
        found = {record.tags["layer_id"]: record.array() for record in dump.select(name=name)}
        assert sorted(found) == list(kept)
        assert all(found[number].tobytes() == values[number][:size].numpy().tobytes() for number in kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere"),
        (["dump", "dump"], "not empty"),
        (["dump", "out", "--to", "pt"], "in the format pt already"),
    ],
)
def test_bad_requests_get_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    DumpWriter(tmp_path / "dump").write(0, 0, "x", torch.ones(2))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

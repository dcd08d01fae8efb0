"""Types of less than a byte, as their bytes, and nested tensors, as values and where each part begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import comparator
from dumper.cli import main
from dumper.convert.cli import main as convert
from dumper.reading.open import open_run
from dumper.values.nested import dims_of_values
from tests.dumper.recording.conftest import Recording

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")

DTYPES = ["float4_e2m1fn_x2", "uint4", "int4", "uint1", "bits8"]
DATA = [[0, 17, 34, 255], [1, 2, 3, 4]]


def packed(dtype: str, data: Any = DATA) -> Any:
    return torch.tensor(data, dtype=torch.uint8).view(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 40_000], ids=["small", "large"])
def test_packed_types_are_recorded_as_their_bytes(recording: Recording, dtype: str, rows: int) -> None:
    recorder = recording.start()
    data = torch.tensor(DATA, dtype=torch.uint8).repeat(rows // 2, 1)
    value = data.view(getattr(torch, dtype))
    recorder.dump("x", value)
    recorder.dump("turned", value.t())
    recorder.dump("sample", value, level="sample(rows=1)")
    recorder.dump("hash", value, level="hash")
    recorder.dump("stats", value, level="stats")
    with recorder.capture() as captured:
        recorder.dump("x", value)
    assert torch.equal(captured[0].value.view(torch.uint8), data)
    data.zero_()
    run = recording.read()
    x, turned, sample, fingerprint, stats = run.records
    assert (x.dtype, x.shape) == (dtype, (rows, 4))
    assert x.array().tolist() == DATA * (rows // 2)
    assert x.tensor().dtype == getattr(torch, dtype)
    assert x.tensor().view(torch.uint8).tolist() == DATA * (rows // 2)
    assert turned.array().T.tolist() == x.array().tolist()
    assert sample.array().tolist() == DATA[:1]
    # Numbers of packed bytes would say nothing.
    assert (stats.level, stats.fingerprint) == ("hash", fingerprint.fingerprint)
    assert run.losses == 0


def test_packed_types_under_on_nan(recording: Recording) -> None:
    """No byte of a packed type is a NaN."""
    recorder = recording.start(on_nan=1)
    for level in ("full", "sample(rows=1)", "stats"):
        recorder.dump("x", packed("float4_e2m1fn_x2"), level=level)
    recorder.dump("nan", torch.tensor(float("nan")))
    assert [record.name for record in recording.read().records] == ["x"] * 3 + ["nan"]


def jagged(parts: list[Any]) -> Any:
    return torch.nested.nested_tensor([torch.tensor(part) for part in parts], layout=torch.jagged)


def strided(parts: list[Any]) -> Any:
    return torch.nested.nested_tensor([torch.tensor(part) for part in parts])


PARTS = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
FLAT = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("make", [jagged, strided])
def test_nested_tensors_are_values_and_offsets(recording: Recording, make: Callable[[Any], Any]) -> None:
    recorder = recording.start()
    value = make(PARTS)
    recorder.dump("x", value, dims="b t h[tp] # ep:replicated", layer_id=3)
    value.detach().zero_() if make is strided else value.values().zero_()
    run = recording.read()
    assert [(record.name, record.tags, record.dims) for record in run.records] == [
        ("x.offsets", {"layer_id": 3}, None),
        ("x.values", {"layer_id": 3}, "t h[tp] # ep:replicated"),
    ]
    assert [record.array().tolist() for record in run.records] == [[0, 2, 3], FLAT]
    assert run.losses == 0
    assert not run.problems


def test_other_nested_tensors(recording: Recording) -> None:
    recorder = recording.start()
    recorder.dump("rows and columns", strided([[[1, 2, 3]], [[4, 5], [6, 7]]]), dims="b t h")
    recorder.dump("turned", strided(PARTS).transpose(1, 2))
    recorder.dump("empty", torch.nested.nested_tensor([]))
    values, offsets, lengths = torch.arange(8.0), torch.tensor([0, 4, 8]), torch.tensor([2, 3])
    recorder.dump("gaps", torch.nested.nested_tensor_from_jagged(values, offsets, lengths))
    recorder.dump("statistics", jagged(PARTS), level="stats")
    recorder.dump("in a tuple", (jagged(PARTS), 1))
    run = recording.read()
    found = {record.name: record for record in run.records}
    assert found["rows and columns.values"].array().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found["rows and columns.sizes"].array().tolist() == [[1, 3], [2, 2]]
    assert found["rows and columns.values"].dims is None
    # Each part (h, t) with h as long in both: the lengths are in another dimension.
    assert found["turned.values"].array().tolist() == [1, 3, 2, 4, 5, 6]
    assert found["turned.sizes"].array().tolist() == [[2, 2], [2, 1]]
    assert found["gaps.lengths"].array().tolist() == [2, 3]
    assert found["gaps.values"].array().tolist() == values.tolist()
    assert found["statistics.values"].statistics["max"] == 6
    assert found["in a tuple.0.values"].array().tolist() == FLAT
    assert found["empty.values"].shape == (0,)
    assert run.losses == 0


def test_counts_and_filters_are_of_the_whole(recording: Recording) -> None:
    """A filter sees the name that was dumped; a part that cannot be read costs what is counted."""
    recorder = recording.start(filter="name == 'x'")
    recorder.dump("x", jagged(PARTS))
    recorder.dump("y", jagged(PARTS))
    freed = jagged(PARTS)
    freed._values.untyped_storage().resize_(0)
    recorder.dump("x", freed)
    run = recording.read()
    assert [record.name for record in run.records] == ["x.offsets", "x.values", "x.offsets"]
    assert run.losses == 1


def test_gradients_of_nested_tensors(recording: Recording) -> None:
    recorder = recording.start()
    leaf = torch.ones(2, 3, requires_grad=True)
    value = torch.nested.as_nested_tensor([leaf[:1], leaf[1:]], layout=torch.jagged) * 2
    recorder.dump("x", value, grad=True)
    (value * 3).values().sum().backward()
    assert leaf.grad is not None
    run = recording.read()
    streams = [(record.name, record.stream) for record in run.records]
    assert streams == [("x.offsets", "value"), ("x.values", "value"), ("x.offsets", "grad"), ("x.values", "grad")]
    assert run.records[-1].array().tolist() == [[3.0] * 3] * 2


def test_captured_in_memory(recording: Recording) -> None:
    recorder = recording.start()
    for make in (jagged, strided):
        with recorder.capture() as captured:
            recorder.dump("x", make(PARTS))
        assert [part.tolist() for part in captured[0].value.unbind()] == PARTS


def test_dims_of_values() -> None:
    assert dims_of_values("b s h(tp)") == "s h(tp)"
    assert dims_of_values("b # tp:replicated") is None
    assert dims_of_values(None) is None


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (lambda: packed("uint4"), lambda: packed("uint4", [[0, 17, 34, 254], [1, 2, 3, 4]])),
        (lambda: packed("float4_e2m1fn_x2"), lambda: packed("float4_e2m1fn_x2", [[0, 17, 34, 255], [1, 2, 3, 5]])),
        (lambda: jagged(PARTS), lambda: jagged([[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]])),
        (lambda: jagged(PARTS), lambda: jagged([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 7.0]]])),
    ],
    ids=["uint4", "float4", "offsets", "values"],
)
def test_the_comparator_sees_the_smallest_change(tmp_path: Path, make: Any, changed: Any) -> None:
    paths = []
    for name, value in (("one", make()), ("same", make()), ("other", changed())):
        recording = Recording(tmp_path / name)
        recording.start().dump("x", value)
        recording.close()
        paths.append(str(recording.path))
    assert comparator.compare(paths[0], paths[1]).passed
    report = comparator.compare(paths[0], paths[2])
    assert not report.passed
    assert report.summary.failed == 1


def test_they_are_shown_and_converted(recording: Recording, tmp_path: Path, capsys: Any) -> None:
    recorder = recording.start()
    recorder.dump("x", jagged(PARTS))
    recorder.dump("packed", packed("uint4"))
    recording.close()
    assert main(["show", str(recording.path), "x"]) == 0
    shown = capsys.readouterr().out
    assert "x.offsets" in shown
    assert "[0 2 3]" in shown
    assert main(["show", str(recording.path), "packed[0,2:]"]) == 0
    shown = capsys.readouterr().out
    assert "uint4 [2, 4]" in shown
    assert "[ 34 255]" in shown
    for wanted in ("pt", "safetensors"):
        # Neither holds types of less than a byte: said, and the rest converted.
        assert convert([str(recording.path), str(tmp_path / wanted), "--to", wanted]) == 1
        assert "uint4" in capsys.readouterr().err
    (record,) = open_run(tmp_path / "pt").select(name="x.values")
    assert record.array().tolist() == FLAT

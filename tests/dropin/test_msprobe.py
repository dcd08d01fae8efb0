"""Dumps of msprobe as runs; written here in the form that its documentation describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from comparator.cli import main
from dumper import open_run
from dumper.cli import main as dumper_main
from dumper.reading.protocol import RunError
from dumper.recording.recorder import Recorder
from dumper.settings import Settings


class Dump:
    """One rank of one step."""

    def __init__(self, path: Path, step: int = 0, rank: str = "rank0", *, tensors: bool = True) -> None:
        self.folder = path / f"step{step}" / rank
        (self.folder / "dump_tensor_data").mkdir(parents=True)
        self._tensors = tensors
        self.data: dict[str, Any] = {}

    def value(self, name: str, tensor: torch.Tensor) -> dict[str, Any]:
        described = {
            "type": "torch.Tensor",
            "dtype": str(tensor.dtype),
            "shape": list(tensor.shape),
            "Max": tensor.max().item(),
            "Min": tensor.min().item(),
            "Mean": tensor.float().mean().item(),
            "Norm": tensor.float().norm().item(),
            "requires_grad": False,
        }
        if self._tensors:
            torch.save(tensor.detach().clone(), self.folder / "dump_tensor_data" / f"{name}.pt")
            described["data_name"] = f"{name}.pt"
        return described

    def write(self) -> None:
        index = {"task": "tensor", "level": "mix", "framework": "pytorch", "dump_data_dir": "/elsewhere"}
        (self.folder / "dump.json").write_text(json.dumps({**index, "data": self.data}))


def dump_model(dump: Dump, model: nn.Sequential, value: torch.Tensor) -> torch.Tensor:
    """The forward pass of a model, as level L0 has it."""
    for path, module in model.named_children():
        call = f"Module.{path}.{type(module).__name__}.forward.0"
        output = module(value)
        dump.data[call] = {
            "input_args": [dump.value(f"{call}.input.0", value)],
            "input_kwargs": {},
            "output": [dump.value(f"{call}.output.0", output)],
        }
        value = output
    return value


def model(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        made[2].weight *= scale
    return made


def test_what_is_listed_is_there_under_the_names_of_attach(tmp_path: Path) -> None:
    dump = Dump(tmp_path)
    whole, gradient = torch.randn(3, 4), torch.randn(3, 4)
    forward, backward = "Module.layers.0.mlp.MLP.forward.0", "Module.layers.0.mlp.MLP.backward.0"
    dump.data = {
        forward: {
            "input_args": [dump.value("a", whole), {"type": "int", "value": 3}, None],
            "input_kwargs": {"scale": dump.value("b", whole.bfloat16())},
            "output": [dump.value("c", whole), [dump.value("d", whole * 2)]],
            "parameters": {"weight": dump.value("e", whole)},
        },
        "Module.layers.0.mlp.MLP.parameters_grad": {"weight": [dump.value("f", gradient)]},
        backward: {"input": [dump.value("g", gradient)], "output": [dump.value("h", gradient)]},
        "Functional.relu.0.forward": {"input_args": [], "input_kwargs": {}, "output": [dump.value("i", whole)]},
        "Functional.relu.1.forward": {"input_args": [], "input_kwargs": {}, "output": [dump.value("j", whole)]},
    }
    dump.write()
    run = open_run(tmp_path)
    assert not run.problems
    path = "layers.0.mlp"
    assert [(record.name, record.stream, record.occurrence, record.kind) for record in run.records] == [
        (f"{path}.input.0", "value", 0, "tensor"),
        (f"{path}.input.1", "value", 0, "value"),
        (f"{path}.input.scale", "value", 0, "tensor"),
        (f"{path}.0", "value", 0, "tensor"),
        (f"{path}.1.0", "value", 0, "tensor"),
        (f"param.{path}.weight", "value", 0, "tensor"),
        (f"param.{path}.weight", "grad", 0, "tensor"),
        (f"{path}.input.0", "grad", 0, "tensor"),
        (path, "grad", 0, "tensor"),
        ("Functional.relu", "value", 0, "tensor"),
        ("Functional.relu", "value", 1, "tensor"),
    ]
    assert torch.equal(run.records[0].tensor(), whole)
    assert run.records[1].value == 3
    assert run.records[2].dtype == "bfloat16"
    assert np.array_equal(run.records[8].array(), gradient.numpy())
    assert all(record.is_intact() for record in run.records)


@pytest.mark.parametrize("tensors", [True, False], ids=["tensors", "statistics"])
@pytest.mark.parametrize(("scale", "code"), [(1.0, 0), (1.5, 1)])
def test_two_dumps_are_compared(
    tmp_path: Path, tensors: bool, scale: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # What a process writes that belongs to no group, by the release of msprobe.
    for name, folder, factor in (("a", "rank", 1.0), ("b", "proc4711", scale)):
        for step in range(2):
            dump = Dump(tmp_path / name, step, folder, tensors=tensors)
            dump_model(dump, model(factor), torch.ones(3, 4) + step)
            dump.write()
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == code
    identical = "everything that was compared is bit-identical" in capsys.readouterr().out
    assert identical == (tensors and scale == 1.0)


def test_two_processes_of_no_group_are_not_mixed(tmp_path: Path) -> None:
    for folder in ("proc12", "proc34"):
        dump = Dump(tmp_path, 0, folder)
        dump_model(dump, model(), torch.ones(3, 4))
        dump.write()
    run = open_run(tmp_path)
    assert {record.rank for record in run.records} == {0}
    assert [problem.message for problem in run.problems] == [
        "step0: proc34 is of the same rank as proc12, which is read; give each process a dump_path of its own"
    ]


def test_a_dump_is_compared_with_a_run_of_attach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = Dump(tmp_path / "dump")
    dump_model(dump, model(), torch.ones(3, 4))
    dump.write()
    recorder = Recorder(Settings().changed(enable=True, dir=str(tmp_path), run="run", control=False))
    own = model()
    with recorder.attach(own, "*", inputs=True):
        own(torch.ones(3, 4))
    recorder.close()
    assert main([str(tmp_path / "dump"), str(tmp_path / "run")]) == 0
    assert "6 compared: 6 passed" in capsys.readouterr().out
    assert dumper_main(["ls", str(tmp_path / "dump")]) == 0
    assert dumper_main(["show", str(tmp_path / "dump"), "0"]) == 0


def test_damage_is_told(tmp_path: Path) -> None:
    dump = Dump(tmp_path)
    secret = tmp_path / "secret.pt"
    torch.save(torch.ones(2), secret)
    dump.data["Functional.x.0.forward"] = {
        "output": [{**dump.value("x", torch.ones(2)), "data_name": "../../../secret.pt"}]
    }
    dump.data["Functional.y.0.forward"] = {"output": [dump.value("y", torch.ones(2))]}
    dump.write()
    (dump.folder / "dump_tensor_data" / "y.pt").write_bytes(b"PK\x03\x04 no file")
    for rank in ("rank2", "rank3"):
        broken = Dump(tmp_path, 0, rank)
        (broken.folder / "dump.json").write_text(
            '{"data": ' if rank == "rank2" else '{"data": {}, "framework": "pytorch"}'
        )
    run = open_run(tmp_path)
    assert sorted(problem.kind for problem in run.problems) == ["missing_rank", "missing_rank", "unreadable"]
    outside, broken_tensor = run.records
    assert (outside.level, broken_tensor.level) == ("stats", "full")
    assert not broken_tensor.is_intact()
    with pytest.raises(ValueError, match=r"y\.pt"):
        broken_tensor.array()
    for part in (dump.folder, dump.folder.parent):
        with pytest.raises(RunError, match="is a part of a dump of msprobe; give"):
            open_run(part)


def test_a_dump_is_written_in_other_formats_but_not_as_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = Dump(tmp_path / "dump")
    dump_model(dump, model(), torch.ones(3, 4))
    dump.write()
    source, out = str(tmp_path / "dump"), tmp_path / "out"
    assert dumper_main(["convert", source, str(out), "--to", "run"]) == 2
    error = capsys.readouterr().err
    assert "already" not in error
    assert "--to pt" in error
    assert not out.exists()
    assert dumper_main(["convert", source, str(out)]) == 0
    assert [record.array().tobytes() for record in open_run(out).records] == [
        record.array().tobytes() for record in open_run(source).records
    ]

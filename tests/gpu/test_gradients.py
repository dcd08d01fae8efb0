"""Gradients, activation checkpointing and whole models: a device computes backward passes on a thread of its own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dumper.recording.recorder import Recorder
from tests.gpu.recordings import DEVICE, Recordings, row_major_bytes


def test_gradients_come_with_the_step_and_tags_of_their_forward_pass(recordings: Recordings) -> None:
    recorder = recordings.start()
    weight = torch.randn(64, 64, device=DEVICE, requires_grad=True)
    activations = []
    for number in range(4):
        recorder.step()
        h = torch.randn(8, 64, device=DEVICE) @ weight
        h.retain_grad()
        with recorder.ctx(outer=number):
            recorder.dump("h", h, dims="t h", grad=True, layer_id=number)
        activations.append(h)
    for h in activations:
        (h * h).sum().backward()
    run = recordings.read(recorder)
    for number, h in enumerate(activations):
        found = {record.stream: record for record in run.select(name="h", step=number)}
        assert set(found) == {"value", "grad"}
        gradient = found["grad"]
        assert h.grad is not None
        assert bytes(gradient.payload()) == row_major_bytes(h.grad)
        assert (dict(gradient.tags), gradient.dims) == ({"layer_id": number, "outer": number}, "t h")
        assert not gradient.recompute


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_recomputed_is_marked_and_keeps_the_tags(recordings: Recordings, reentrant: bool) -> None:
    recorder = recordings.start()

    def block(x: torch.Tensor, layer: int) -> torch.Tensor:
        y = x.sin()
        recorder.dump("y", y, layer_id=layer)
        return y.exp()

    h = torch.randn(16, 16, device=DEVICE, requires_grad=True)
    recorder.step()
    with recorder.ctx(micro=5):
        for layer in range(3):
            h = checkpoint(block, h, layer, use_reentrant=reentrant)
        h.sum().backward()
    records = recordings.read(recorder).records
    assert sorted(record.recompute for record in records) == [False] * 3 + [True] * 3
    for layer in range(3):
        first, again = (record for record in records if record.tags["layer_id"] == layer)
        assert bytes(first.payload()) == bytes(again.payload())
    assert [record.tags.get("micro") for record in records] == [5] * 6
    assert {record.step for record in records} == {0}


def test_whole_models_and_memory(recordings: Recordings) -> None:
    recorder = recordings.start()
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Linear(16, 4)).to(DEVICE)
    with recorder.attach(model, "*", inputs=True, grad=True):
        model(torch.randn(3, 32, device=DEVICE, requires_grad=True)).sum().backward()
    recorder.dump_model(model)
    run = recordings.read(recorder)
    assert len(run.records) == 8 + 8
    for name, parameter in model.named_parameters():
        value, gradient = sorted(run.select(name=f"param.{name}"), key=lambda record: record.stream == "grad")
        assert parameter.grad is not None
        assert bytes(value.payload()) == row_major_bytes(parameter)
        assert bytes(gradient.payload()) == row_major_bytes(parameter.grad)
    captured, x = Recorder(), torch.ones(5, device=DEVICE)
    with captured.capture() as records:
        captured.dump("x", x)
        x.zero_()
    assert records[0].value.device.type == DEVICE
    assert float(records[0].value.sum()) == 5

"""Recording modules, gradients, parameters and nested values, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dumper import Run, open_run
from dumper.recording.recorder import Recorder


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    yield recorder
    recorder.close()


def finished(recorder: Recorder) -> Run:
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert not run.problems
    return run


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(4, 4)
        self.mlp = nn.Linear(4, 4)

    def forward(
        self, x: torch.Tensor, *, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y = self.mlp(self.attn(x))
        return y if scale is None else y * scale, {"twice": 2 * y}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x, _ = layer(x, scale=torch.ones(4))
        return x


def test_attach_records_outputs_of_matching_modules_alone(recorder: Recorder) -> None:
    model, x = Model(), torch.randn(3, 4)
    seen: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.layers):
        layer.mlp.register_forward_hook(lambda m, a, out, i=index: seen.update({f"layers.{i}.mlp": out.clone()}))
    attachment = recorder.attach(model, "layers.*.mlp")
    assert attachment.paths == ("layers.0.mlp", "layers.1.mlp")
    model(x)
    attachment.detach()
    model(x)
    run = finished(recorder)
    assert [record.name for record in run.records] == ["layers.0.mlp", "layers.1.mlp"]
    for record in run.records:
        assert torch.equal(record.tensor(), seen[record.name])


def test_attach_names_nested_outputs_and_keyword_inputs(recorder: Recorder) -> None:
    with recorder.attach(Model(), "layers.1", inputs=True) as attachment:
        assert attachment.paths == ("layers.1",)
    model = Model()
    with recorder.attach(model, "layers.1", inputs=True):
        model(torch.randn(3, 4))
    names = {record.name for record in finished(recorder).records}
    assert names == {"layers.1.input.0", "layers.1.input.scale", "layers.1.0", "layers.1.1.twice"}


def test_attach_says_what_is_near_a_pattern_that_matches_nothing(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match=r"no module of Model matches 'layer.\*.mlp'; the nearest paths are layers\."):
        recorder.attach(Model(), "layer.*.mlp")


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("layers.*", 2), ("layers.*.*", 4), ("**.mlp", 2), ("layers.**", 6), ("**", 6), ("layers.1.attn", 1)],
)
def test_path_patterns(recorder: Recorder, pattern: str, count: int) -> None:
    assert len(recorder.attach(Model(), pattern).paths) == count


def test_gradients_come_with_the_step_of_their_forward_pass(recorder: Recorder) -> None:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    losses = []
    for number in range(2):
        recorder.step()
        hidden = weight * (number + 1)
        recorder.dump("hidden", hidden, dims="h", grad=True, layer_id=7)
        losses.append((hidden * hidden).sum())
    # Both backward passes run when step 1 is already under way.
    for loss in losses:
        loss.backward()
    run = finished(recorder)
    for number in range(2):
        [gradient] = [
            record for record in run.select(name="hidden", step=number, layer_id=7) if record.stream == "grad"
        ]
        assert gradient.dims == "h"
        assert torch.equal(gradient.tensor(), 2 * torch.tensor([2.0, 3.0]) * (number + 1))


def test_a_value_without_gradient_is_recorded_all_the_same(recorder: Recorder) -> None:
    recorder.dump("plain", torch.ones(2), grad=True)
    assert [(record.name, record.stream) for record in finished(recorder).records] == [("plain", "value")]


def test_dump_model_records_parameters_and_their_gradients(recorder: Recorder) -> None:
    model = nn.Linear(3, 2)
    model(torch.randn(5, 3)).sum().backward()
    recorder.dump_model(model, prefix="model")
    run = finished(recorder)
    found = {(record.name, record.stream): record.tensor() for record in run.records}
    assert set(found) == {(f"model.{part}", stream) for part in ("weight", "bias") for stream in ("value", "grad")}
    assert torch.equal(found["model.weight", "value"], model.weight.detach())
    assert torch.equal(found["model.bias", "grad"], torch.full((2,), 5.0))


def test_dump_dict_names_the_leaves(recorder: Recorder) -> None:
    @dataclass
    class Output:
        logits: torch.Tensor
        cache: list[torch.Tensor]
        skipped: None = None
        sizes: tuple[int, ...] = (1, 2)

    recorder.dump_dict("out", {"a": Output(torch.ones(1), [torch.zeros(2)]), "b": 3})
    run = finished(recorder)
    assert [record.name for record in run.records] == ["out.a.logits", "out.a.cache.0", "out.a.sizes", "out.b"]
    assert [record.value for record in run.records if record.kind == "value"] == [[1, 2], 3]


def test_tensors_in_a_nested_value_are_recorded_by_name(recorder: Recorder) -> None:
    @dataclass
    class Output:
        logits: torch.Tensor
        helper: object
        sizes: tuple[int, ...] = (1, 2)

    recorder.dump("out", Output(torch.ones(1), object()), dims="t", layer_id=1)
    recorder.dump("pair", (torch.zeros(2), None))
    recorder.dump("plain", [1, 2])
    run = finished(recorder)
    assert [(record.name, record.dims) for record in run.records] == [
        ("out.logits", "t"),
        ("pair.0", None),
        ("plain", None),
    ]
    assert run.records[0].tags == {"layer_id": 1}
    assert run.records[2].value == [1, 2]


def test_a_value_is_recorded_as_it_was_when_it_was_dumped(recorder: Recorder) -> None:
    for size in (8, 1 << 17):
        value = torch.arange(size)
        recorder.dump("value", value, size=size)
        value.zero_()
    for record in finished(recorder).records:
        assert torch.equal(record.tensor(), torch.arange(record.tags["size"]))


def test_activation_recomputation_is_marked(recorder: Recorder) -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        recorder.dump("y", y)
        return y.exp()

    x = torch.randn(3, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    first, again = finished(recorder).records
    assert (first.recompute, again.recompute) == (False, True)
    assert torch.equal(first.tensor(), again.tensor())


@pytest.mark.parametrize("status", ["disabled", "original", "recompute"])
def test_a_filter_asks_whether_activations_are_recomputed(recorder: Recorder, status: str) -> None:
    recorder.configure(filter=f"recompute_status == {status!r}")

    def block(x: torch.Tensor) -> torch.Tensor:
        recorder.dump("inside", x)
        return x.exp()

    x = torch.randn(3, requires_grad=True)
    recorder.dump("outside", x)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    (record,) = finished(recorder).records
    assert (record.name, record.recompute) == {
        "disabled": ("outside", False),
        "original": ("inside", False),
        "recompute": ("inside", True),
    }[status]


def test_what_another_thread_computes_of_a_backward_pass_has_the_tags_of_the_thread_that_began_it(
    recorder: Recorder,
) -> None:
    """As with a device, whose backward passes have a thread of their own: torch hands deeply nested ones over."""
    threads: set[int] = set()
    depth = 64

    def block(x: torch.Tensor, left: int) -> torch.Tensor:
        if left:
            return checkpoint(block, x, left - 1, use_reentrant=True) * 1
        threads.add(get_ident())
        y = x.sin()
        recorder.dump("y", y)
        return y

    x = torch.randn(3, requires_grad=True)
    with recorder.ctx(micro_batch=5), recorder.ctx(phase="b"):
        loss = block(x, depth).sum()
    with recorder.ctx(micro_batch=6):
        loss.backward()
    records = finished(recorder).records
    assert len(threads) == 2
    first, *again = (dict(record.tags) for record in records)
    assert first == {"micro_batch": 5, "phase": "b"}
    assert again == [{"micro_batch": 6}] * len(again)
    assert [record.recompute for record in records] == [False] + [True] * len(again)


def test_capture_records_into_memory_and_nothing_to_disk(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.configure(enable=False, dir=str(tmp_path), run="run", control=False)
    value = torch.ones(2)
    with recorder.capture() as records, recorder.ctx(layer_id=1):
        recorder.dump("x", value, dims="h", other=2)
        value.zero_()
    recorder.dump("after", value)
    assert [(record.name, dict(record.tags), record.dims) for record in records] == [
        ("x", {"layer_id": 1, "other": 2}, "h")
    ]
    assert torch.equal(records[0].value, torch.ones(2))
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_is_dumped_in_each_pass_has_one_gradient_of_each(recorder: Recorder) -> None:
    weight = nn.Parameter(torch.ones(3))
    for number in range(3):
        with recorder.step():
            for part in range(2):
                recorder.dump("weight", weight, grad=True, part=part)
                recorder.dump("weight", weight, grad=True)
                (weight * (10 * number + part)).sum().backward()
    run = finished(recorder)
    gradients = [record for record in run.select(name="weight") if record.stream == "grad"]
    assert sorted((record.step, record.occurrence) for record in gradients if "part" not in record.tags) == [
        (step, occurrence) for step in range(3) for occurrence in range(2)
    ]
    for record in gradients:
        if "part" not in record.tags:
            assert record.array().tolist() == [10.0 * record.step + record.occurrence] * 3


def test_hooks_of_parameters_that_are_gone_are_forgotten(recorder: Recorder) -> None:
    for number in range(5):
        weight = nn.Parameter(torch.full((3,), float(number)))
        recorder.dump("weight", weight, grad=True)
        (weight * weight).sum().backward()
        del weight
    assert not recorder._special._hooks
    run = finished(recorder)
    gradients = [record.array().tolist() for record in run.select(name="weight") if record.stream == "grad"]
    assert gradients == [[2.0 * number] * 3 for number in range(5)]


def test_lists_of_modules_are_no_taps(recorder: Recorder) -> None:
    model = Model()
    with recorder.attach(model, "**") as attachment:
        model(torch.ones(2, 4))
    assert "layers" not in attachment.paths
    assert "layers.0" in attachment.paths
    run = finished(recorder)
    assert not [tap for tap in run.taps if not tap.fired]
    with recorder.attach(model, "layers") as attachment:
        assert attachment.paths == ("layers",)


def _checkpointed(model: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

    checkpoint_wrapper.apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    return model


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def _compiled_in_part(model: Model) -> nn.Module:
    model.layers[1] = torch.compile(model.layers[1], backend="eager")
    return model


def _data_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


@pytest.mark.parametrize("wrap", [_checkpointed, _compiled, _compiled_in_part, _data_parallel])
def test_what_wraps_modules_changes_no_names(recorder: Recorder, wrap: Callable[[Model], nn.Module]) -> None:
    names = []
    for number in range(2):
        model: nn.Module = Model()
        if number:
            model = wrap(model)
        with recorder.capture() as records, recorder.attach(model, "layers.**"):
            model(torch.ones(2, 4)).sum().backward()
            recorder.dump_model(model)
        names.append({(record.name, record.stream) for record in records})
    assert names[0] == names[1]
    assert ("layers.0.attn", "value") in names[0]
    assert ("param.layers.1.mlp.weight", "grad") in names[0]


def test_a_wrapper_may_be_named_as_well(recorder: Recorder) -> None:
    with recorder.attach(nn.DataParallel(Model()), "module.layers.*.mlp") as attachment:
        assert attachment.paths == ("layers.0.mlp", "layers.1.mlp")


def test_dims_of_modules_and_parameters(recorder: Recorder) -> None:
    model = Model()
    with recorder.attach(model, "layers.*", grad=True, dims="t h[tp]", dims_grad="t h[tp:partial]"):
        model(torch.ones(2, 4)).sum().backward()
    with recorder.attach(model, "layers.*.mlp", dims="b s h"):
        model(torch.ones(2, 4))
    recorder.dump_model(model, dims="# dp:replicated")
    run = finished(recorder)
    assert {record.dims for record in run.select(name="layers.0.0")} == {"t h[tp]", "t h[tp:partial]"}
    assert {record.dims for record in run.select(name="layers.0.mlp")} == {None}, "as many dims as dimensions, or none"
    assert {record.dims for record in run.select(name="param.layers.0.mlp.weight")} == {"# dp:replicated"}


def test_parameters_between_passes_belong_to_the_pass_before(recorder: Recorder) -> None:
    """A trainer's callback has no pass under way: the passes of a patched model are steps, and end with it."""
    model = Model()
    tap, step = recorder.install_taps(
        "m", ({"id": "t#1:out", "name": "out"}, {"id": "t#0:s", "name": "s", "kind": "step"}), {}
    )
    for _ in range(2):
        step.step()
        output = model(torch.ones(2, 4))
        tap.record(output)
        step.end_step()
        output.sum().backward()
        recorder.dump_model(model)
        tap.record(output)
    run = finished(recorder)
    found = [(record.stream, record.step) for record in run.select(name="param.layers.0.mlp.weight")]
    assert found == [("value", 0), ("grad", 0), ("value", 1), ("grad", 1)]
    assert run.outside_steps == 2
    assert "2 outside steps and left out" in repr(run)


def test_parameters_of_megatron_say_how_they_are_split(recorder: Recorder) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    marks = {"tensor_model_parallel": True, "partition_dim": 0, "partition_stride": 1}
    more: tuple[dict[str, Any], ...] = ({}, {"partition_stride": 2}, {"allreduce": False})
    for module, others in zip(model, more, strict=True):
        for name, value in {**marks, **others}.items():
            setattr(module.weight, name, value)
    model(torch.ones(1, 4)).sum().backward()
    recorder.dump_model(model, dims="# tp:replicated dp:replicated")
    run = finished(recorder)
    assert [record.dims for record in run.select(name="param.0.weight")] == ["d0[tp] d1 # dp:replicated"] * 2
    for name in ("param.0.bias", "param.1.weight", "param.2.weight"):
        assert {record.dims for record in run.select(name=name)} == {"# tp:replicated dp:replicated"}

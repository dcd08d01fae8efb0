"""Programs written for SGLang's dumper: what they call means the same here."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dumper import Run, open_run
from dumper.recording.recorder import Recorder
from dumper.settings import Settings, SettingsError


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(Settings().changed(enable=True, dir=str(tmp_path), run="run", control=False))
    yield recorder
    recorder.close()


def finished(recorder: Recorder) -> Run:
    path = recorder.settings.run_path
    recorder.close()
    return open_run(path)


def by_name(run: Run) -> dict[str, Any]:
    assert not run.problems
    return {record.name if record.stream == "value" else f"grad of {record.name}": record for record in run.records}


# Keywords of dump, in a call and at a tap of a patch config


def at_a_tap(recorder: Recorder) -> Any:
    info = {"id": "m.f#1:x", "name": "x", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1}
    (tap,) = recorder.install_taps("m", (info,), {})
    return tap.dump


@pytest.mark.parametrize("through_tap", [False, True], ids=["call", "tap"])
def test_keywords_of_dump_are_no_tags(recorder: Recorder, through_tap: bool) -> None:
    recorder.configure(enable_grad=True)
    dump = at_a_tap(recorder) if through_tap else recorder.dump
    value = torch.ones(2, 3, requires_grad=True)
    dump("kept", value, save=True, dims="t h", dims_grad="t h[tp]", grafter_extras={"a": 1}, layer_id=1)
    dump("by_place", value.detach(), True, "t h", "t h[tp]")
    dump("not_kept", value, save=False)
    dump("not_kept", value, False)
    dump("later", value.detach(), step=7)
    (2 * value).sum().backward()
    records = by_name(finished(recorder))
    assert set(records) == {"kept", "grad of kept", "by_place", "later"}
    assert records["kept"].dims == records["by_place"].dims == "t h"
    assert records["grad of kept"].dims == "t h[tp]"
    assert records["grad of kept"].tags == records["kept"].tags == {"layer_id": 1}
    assert records["grad of kept"].array().tolist() == [[2.0] * 3] * 2
    assert records["later"].step == 7


def test_gradients_without_values(recorder: Recorder) -> None:
    recorder.configure(enable_grad=True, enable_value=False)
    value = torch.ones(2, requires_grad=True)
    recorder.dump("x", value)
    (3 * value).sum().backward()
    assert set(by_name(finished(recorder))) == {"grad of x"}


def test_gradients_that_differ_are_compared(tmp_path: Path) -> None:
    from comparator.cli import main

    for name, factor in (("a", 1.0), ("b", 99.0)):
        recorder = Recorder(
            Settings().changed(enable=True, enable_grad=True, dir=str(tmp_path), run=name, control=False)
        )
        value = torch.ones(4, 4, requires_grad=True)
        recorder.dump("x", value, dims="t h", dims_grad="t h")
        (factor * value).sum().backward()
        recorder.close()
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--allow-skipped-pattern", ".*"]) == 1


def test_a_function_is_called_where_its_value_is_wanted(recorder: Recorder) -> None:
    recorder.configure(filter="name != 'filtered'")
    calls = []

    def value() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2)

    recorder.dump("filtered", value)
    assert not calls
    recorder.dump("wanted", value)
    recorder.dump("fails", lambda: 1 / 0)
    recorder.configure(enable=False)
    recorder.dump("off", value)
    assert len(calls) == 1
    run = finished(recorder)
    assert [record.name for record in run.records] == ["wanted"]
    assert [problem.kind for problem in run.problems] == ["lost"]


class Batch:
    def __init__(self) -> None:
        self.input_ids = torch.arange(3)
        self.mode = "decode"
        self.parts = {"a": torch.ones(1)}

    @property
    def broken(self) -> int:
        raise RuntimeError

    def method(self) -> None: ...


def test_an_object_is_taken_apart(recorder: Recorder) -> None:
    recorder.dump_dict("batch", Batch(), save=True)
    recorder.dump_dict(name_prefix="again", data=Batch(), layer_id=1)
    recorder.dump_dict("never", Batch(), save=False)
    records = by_name(finished(recorder))
    parts = ("input_ids", "mode", "parts.a")
    assert set(records) == {f"{name}.{part}" for name in ("batch", "again") for part in parts}
    assert records["again.mode"].tags == {"layer_id": 1}


def test_parameters_under_sglangs_names(recorder: Recorder) -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.grad = torch.ones(2, 2)
    recorder.dump_model(model, name_prefix="start", get_grad=lambda parameter: parameter.grad * 3, step=4)
    recorder.dump_model(model, save=False)
    recorder.configure(enable_model_value=False, enable_grad=True)
    recorder.dump_model(model, prefix="own")
    run = finished(recorder)
    assert [(record.name, record.stream, record.step) for record in run.records] == [
        ("start__weight", "value", 4),
        ("start__weight", "grad", 4),
        ("own.weight", "grad", 0),
    ]
    assert run.records[1].array().tolist() == [[3.0] * 2] * 2
    assert not model.weight._backward_hooks


# Tags


def test_tags_that_are_set_hold_in_every_thread_until_they_are_none(recorder: Recorder) -> None:
    recorder.set_ctx(layer_id=3, phase="decode")
    thread = threading.Thread(target=lambda: recorder.dump("thread", torch.ones(1)))
    thread.start()
    thread.join()
    recorder.set_ctx(layer_id=None)
    recorder.dump("after", torch.ones(1), phase="own")
    records = by_name(finished(recorder))
    assert records["thread"].tags == {"layer_id": 3, "phase": "decode"}
    assert records["after"].tags == {"phase": "own"}


def test_a_function_is_decorated_with_tags(recorder: Recorder) -> None:
    @dataclass
    class Layer:
        layer_id: int

        @recorder.ctx(lambda self: {"layer_id": self.layer_id})
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            recorder.dump("inside", value)
            return value + 1

        @recorder.ctx(lambda self: {"layer_id": self.missing})
        def wrong(self) -> int:
            recorder.dump("wrong", torch.ones(1))
            return 5

    @recorder.ctx(phase="decode")
    def decode() -> None:
        recorder.dump("decode", torch.ones(1))
        raise KeyError

    assert Layer(2).forward(torch.ones(1)).item() == 2
    assert Layer(2).wrong() == 5
    with pytest.raises(KeyError):
        decode()
    recorder.dump("outside", torch.ones(1))
    records = by_name(finished(recorder))
    tags = {name: record.tags for name, record in records.items()}
    assert tags == {"inside": {"layer_id": 2}, "wrong": {}, "decode": {"phase": "decode"}, "outside": {}}


# Other calls


def test_output_is_captured_by_name(recorder: Recorder, tmp_path: Path) -> None:
    recorder.configure(filter="name != 'no'")
    value = torch.ones(2)
    with recorder.capture_output() as output:
        recorder.dump("x", value, dims="t", layer_id=1)
        recorder.dump("no", value)
        value.zero_()
    assert output["x"]["value"].tolist() == [1, 1]
    assert output["x"]["meta"] == {
        "name": "x",
        "step": 0,
        "dims": "t",
        "layer_id": 1,
        "recompute_status": "disabled",
    }
    assert set(output) == {"x"}
    recorder.configure(enable=False)
    with recorder.capture_output() as output:
        recorder.dump("x", value)
    assert not output
    assert not (tmp_path / "run").exists()


def test_what_the_environment_says_is_no_default(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORTAP_FILTER", "rank == 0")
    recorder.configure_default(filter="rank == 1", exp_name="mine", level="stats")
    assert (recorder.settings.filter, recorder.settings.run, recorder.settings.level) == (None, "mine", "stats")


def test_state(recorder: Recorder) -> None:
    assert recorder.may_enable
    recorder.dump("x", torch.ones(2))
    state = recorder.get_state()
    assert (state["dump_index"], state["step"]) == (1, 0)
    config = state["config"]
    assert (config["enable"], config["enable_grad"], config["exp_name"]) == (True, False, "run")
    assert not Recorder(Settings()).may_enable
    assert Recorder(Settings().changed(http_port=1)).may_enable


def test_after_a_reset_a_run_of_its_own_begins(recorder: Recorder, tmp_path: Path) -> None:
    for _ in range(3):
        recorder.set_ctx(phase="x")
        recorder.dump("x", torch.ones(2))
        recorder.reset()
        assert recorder.get_state()["step"] == 0
    recorder.dump("x", torch.ones(2))
    runs = {name: open_run(tmp_path / name) for name in ("run", "run-2", "run-3")}
    assert all(not run.problems for run in runs.values())
    assert [record.tags for record in runs["run-2"].records] == [{"phase": "x"}]
    assert [record.tags for record in open_run(finished(recorder).path).records] == [{}]


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_number = number + 1
        self.mlp = nn.Linear(2, 2)

    def forward(self, value: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.mlp(value), None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(number) for number in range(2)])

    def forward(self, input_ids: torch.Tensor, batch: Any = None) -> torch.Tensor:
        value = torch.ones(input_ids.shape[0], 2)
        for layer in self.layers:
            value, _ = layer(value)
        return value


@pytest.mark.parametrize("mode", ["core", "all", "off"])
def test_a_model_is_recorded_without_a_change_of_its_source(recorder: Recorder, mode: str) -> None:
    recorder.configure(non_intrusive_mode=mode)
    model, batch = Model(), Batch()
    batch.seq_lens = torch.tensor([3])  # type: ignore[attr-defined]
    registered = recorder.register_non_intrusive_dumper(model)
    assert (registered is None) == (mode == "off")
    model.forward(torch.arange(3), batch=batch)
    recorder.reset()
    forwards = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert not forwards
    model(torch.arange(3))
    run = open_run(recorder.settings.run_path.with_name("run")) if mode != "off" else None
    tags: Mapping[str, Any] = {record.name: dict(record.tags) for record in run.records} if run else {}
    everything = {
        "non_intrusive__inputs.0",
        "non_intrusive__output",
        *(
            f"non_intrusive__layers.{number}{path}"
            for number in range(2)
            for path in (".inputs.0", ".output", ".mlp.inputs.0", ".mlp.output")
        ),
    }
    expected = {"core": {"input_ids", "seq_lens"}, "all": {"input_ids", "seq_lens", *everything}, "off": set()}[mode]
    assert set(tags) == expected
    assert all(own == {"layer_id": int(name[22])} for name, own in tags.items() if "layers" in name)


# Settings


def test_sglangs_variables_count_where_they_are_asked_for() -> None:
    environment = {
        "DUMPER_ENABLE": "1",
        "DUMPER_EXP_NAME": "mine",
        "DUMPER_FILTER": "layer_id == 0",
        "DUMPER_ENABLE_GRAD": "true",
        "DUMPER_SERVER_PORT": "-1",
        "DUMPER_ENABLE_OUTPUT_CONSOLE": "0",
        "DUMPER_SOMETHING_ELSE": "1",
        "DUMPER_DIR": " ",
        "TENSORTAP_FILTER": "layer_id == 1",
    }
    assert Settings.from_environment(environment)[0] == Settings(filter="layer_id == 1")
    settings, errors = Settings.from_environment({**environment, "TENSORTAP_SGLANG_ENV": "1"})
    assert not errors
    assert settings == Settings(enable=True, run="mine", filter="layer_id == 1", enable_grad=True)


@pytest.mark.parametrize(
    ("variable", "text", "records"),
    [
        ("DUMPER_FILTER", "layer_id in [", False),
        ("DUMPER_ENABLE_OUTPUT_FILE", "0", False),
        ("DUMPER_SERVER_PORT", "reuse", True),
        ("DUMPER_SOURCE_PATCHER_CONFIG", "x.yaml", True),
        ("DUMPER_GRAFTER_ENABLE", "1", True),
    ],
)
def test_what_sglangs_variables_cannot_have_here_is_said(variable: str, text: str, records: bool) -> None:
    environment = {"TENSORTAP_SGLANG_ENV": "1", "DUMPER_ENABLE": "1", variable: text}
    settings, (error,) = Settings.from_environment(environment)
    assert str(error).startswith(variable)
    assert settings.enable == records


def test_configure_takes_sglangs_words(recorder: Recorder) -> None:
    recorder.configure(exp_name="b", server_port="-1", enable_output_console=False, collective_timeout=5)
    assert (recorder.settings.run, recorder.settings.http_port) == ("b", None)
    with pytest.raises(SettingsError, match="grafter_enable"):
        recorder.configure(grafter_enable=True)


def test_earlier_recordings_are_deleted_where_that_is_asked_for(recorder: Recorder, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "run" / "run-id").unlink(missing_ok=True)  # as of a launch that is over
        recorder.configure(cleanup_previous=True)
        recorder.dump(f"x{number}", torch.ones(2))
        (tmp_path / "run" / "notes.txt").touch()
        recorder.close()
    assert set(by_name(open_run(tmp_path / "run"))) == {"x1"}
    assert (tmp_path / "run" / "notes.txt").exists()


def test_ranks_of_one_launch_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORTAP_LAUNCH_TIME", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    first = Settings.from_environment({"TENSORTAP_RUN": "tp2-{time}"})[0].run
    assert first.startswith("tp2-2")
    assert first == Settings().changed(run="tp2-{time}").run
    monkeypatch.delenv("TENSORTAP_LAUNCH_TIME")
    again = Settings().changed(run="tp2-{time}").run
    # Worked out anew, from when the launcher was started: the clock ticks every hundredth of a second.
    assert abs(int(again[-3:]) - int(first[-3:])) % 980 <= 20

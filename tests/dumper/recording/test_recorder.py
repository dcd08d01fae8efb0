"""Steps, tags, taps, filters and levels, as the contracts in docs/architecture.md have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dumper import open_run
from dumper.cli import main
from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout
from dumper.reading.protocol import Record
from dumper.recording.recorder import Recorder
from dumper.settings import Settings, SettingsError
from tests.dumper.recording.conftest import Recording
from tests.dumper.rules.test_expressions import needs_re2


def _steps(recording: Recording) -> list[tuple[str, int | None]]:
    return [(record.name, record.step) for record in recording.read().records]


def _tap(number: int, **more: Any) -> dict[str, Any]:
    name = f"tap{number}"
    return {"id": f"m.f#{number}:{name}", "name": name, "kind": "dump", "file": "m.py", "line": number, **more}


STEP_TAP = {"id": "m.forward#1:step", "name": "step", "kind": "step", "file": "m.py", "line": 1}


def test_the_first_step_is_step_0(recording: Recording) -> None:
    recorder = recording.start()
    for name in "abc":
        recorder.step()
        recorder.dump(name, 1)
    assert _steps(recording) == [("a", 0), ("b", 1), ("c", 2)]


def test_steps_that_come_after_the_records_as_in_sglang(recording: Recording) -> None:
    recorder = recording.start()
    for name in "abc":
        recorder.dump(name, 1)
        recorder.step()
    assert _steps(recording) == [("a", 0), ("b", 1), ("c", 2)]


def test_without_steps_everything_is_step_0(recording: Recording) -> None:
    recorder = recording.start()
    recorder.dump("a", 1)
    recorder.dump("a", 1)
    run = recording.read()
    assert [(record.step, record.occurrence) for record in run.records] == [(0, 0), (0, 1)]


def test_steps_without_records_count(recording: Recording) -> None:
    recorder = recording.start()
    recorder.step()
    recorder.step()
    recorder.dump("a", 1)
    run = recording.read()
    assert run.steps == (0, 1)
    assert run.records[0].step == 1


def test_records_outside_a_step_are_counted_where_steps_are_explicit(recording: Recording) -> None:
    recorder = recording.start()
    recorder.install_taps("m", (STEP_TAP,), {})
    recorder.dump("warm-up", 1)
    with recorder.step():
        recorder.dump("inside", 1)
    recorder.dump("between", 1)
    assert recorder.state()["outside_steps"] == 2
    assert _steps(recording) == [("inside", 0)]


def test_records_outside_a_step_on_demand(recording: Recording) -> None:
    recorder = recording.start(outside_steps="record")
    recorder.install_taps("m", (STEP_TAP,), {})
    recorder.dump("warm-up", 1)
    with recorder.step():
        recorder.dump("inside", 1)
    assert _steps(recording) == [("warm-up", None), ("inside", 0)]


def test_a_layout_comes_back(recording: Recording) -> None:
    layout = TokenLayout(
        forward_mode="decode",
        sequences=(SequenceSpan("r-1", 5, 1), SequenceSpan("r-2", 9, 1)),
        rows=4,
        token_ids=np.array([7, 2**40, -1, 0], dtype=np.int64),
        data_parallel=DataParallelRows("attn_dp", 1, 2, (4, 4), (2, 0), "max_len"),
        extra={"padded": [1, None]},
    )
    recorder = recording.start()
    recorder.step(layout=layout, phase="decode")
    recorder.dump("x", 1)
    found = recording.read().layout(0, 0)
    assert found is not None
    assert found.sequences == layout.sequences
    assert (found.forward_mode, found.rows, found.real_rows) == ("decode", 4, 2)
    assert found.data_parallel == layout.data_parallel
    assert found.extra == layout.extra
    assert layout.token_ids is not None
    np.testing.assert_array_equal(found.token_ids, layout.token_ids)
    assert recording.read().layout(1, 0) is None


def test_a_bad_layout_costs_the_layout_alone(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    recorder = recording.start()
    recorder.step(layout=TokenLayout("decode", (), 1, extra={"bad": object()}))
    recorder.dump("x", 1)
    assert _steps(recording) == [("x", 0)]
    assert "the token layout of step 0 cannot be recorded" in caplog.text


def test_tags_come_from_contexts_and_calls(recording: Recording) -> None:
    recorder = recording.start()
    with recorder.ctx(layer_id=1, phase="a"):
        recorder.dump("x", 1)
        with recorder.ctx(layer_id=2):
            recorder.dump("x", 1, phase="b")
    recorder.dump("x", 1)
    tags = [dict(record.tags) for record in recording.read().records]
    assert tags == [{"layer_id": 1, "phase": "a"}, {"layer_id": 2, "phase": "b"}, {}]


def test_tags_keep_their_types(recording: Recording) -> None:
    recorder = recording.start()
    values = [1, True, 1.0, "1", None, np.int64(1), torch.tensor(1), [1]]
    for value in values:
        recorder.dump("x", 0, tag=value)
    found = [record.tags["tag"] for record in recording.read().records]
    assert [(type(tag), tag) for tag in found] == [
        (int, 1),
        (bool, True),
        (float, 1.0),
        (str, "1"),
        (type(None), None),
        (int, 1),
        (int, 1),
        (str, "[1]"),
    ]


def test_occurrences_count_by_name_and_tags_in_a_step(recording: Recording) -> None:
    recorder = recording.start()
    for _ in range(2):
        recorder.step()
        for layer in (0, 1, 0):
            recorder.dump("x", torch.ones(2 + layer), layer_id=layer)
    run = recording.read()
    assert [(r.step, r.tags["layer_id"], r.occurrence) for r in run.records] == [
        (0, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 0),
        (1, 1, 0),
        (1, 0, 1),
    ]


def test_select(recording: Recording) -> None:
    recorder = recording.start()
    for step in range(3):
        recorder.step()
        for layer in range(4):
            recorder.dump("attn", torch.full((2,), step * 10.0 + layer), layer_id=layer)
            recorder.dump("mlp", 1, layer_id=layer)
    run = recording.read()
    (record,) = run.select(name="attn", step=2, layer_id=3)
    assert record.array().tolist() == [23.0, 23.0]
    assert len(run.select(name="mlp")) == 12
    assert len(run.select(layer_id=0, rank=0)) == 6
    assert run.select(name="attn", rank=1) == []
    assert run.select(other=1) == []


def test_the_index_as_a_table(recording: Recording) -> None:
    recorder = recording.start()
    recorder.dump("attn", torch.ones(2, 3), dims="t h", layer_id=3, phase="x")
    recorder.dump("mlp", 1, layer_id=True)
    table = recording.read().to_polars()
    assert table.height == 2
    assert table["name"].to_list() == ["attn", "mlp"]
    assert table["shape"].to_list() == [[2, 3], None]
    assert {"rank", "step", "dims", "tag.layer_id", "tag.phase"} <= set(table.columns)


# Taps


def test_taps_fire_and_are_covered(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = recording.start()
    config = {"paths": ["c.yaml"], "sha256": "ab", "texts": {"c.yaml": "patches: []"}}
    taps = recorder.install_taps("m", (_tap(1), _tap(2), _tap(3, level="stats")), config)
    assert all(tap.on for tap in taps)
    for _ in range(3):
        taps[0].record(torch.ones(2), "t", layer_id=0)
    taps[2].record(torch.ones(2))
    taps[2].dump("other", torch.ones(2), dims="x", level="hash")
    run = recording.read()
    assert [(tap.id, tap.fired, tap.silent) for tap in run.taps] == [
        ("m.f#1:tap1", 3, False),
        ("m.f#2:tap2", 0, True),
        ("m.f#3:tap3", 2, False),
    ]
    assert run.silent_taps == ("m.f#2:tap2 (m.py:2)",)
    assert main(["ls", str(recording.path)]) == 0
    assert main(["ls", "--strict-taps", str(recording.path)]) == 1
    assert "tap m.f#2:tap2 (m.py:2) never fired" in capsys.readouterr().err
    assert [record.tap for record in run.records] == ["m.f#1:tap1"] * 3 + ["m.f#3:tap3"] * 2
    assert [record.level for record in run.records] == ["full"] * 3 + ["stats", "hash"]
    assert run.headers[0].patch_config == config


def test_a_tap_says_what_it_is_computed_from(recording: Recording) -> None:
    recorder = recording.start()
    declared = _tap(1, inputs=("attn_output", "layer_input@-1"), operation="sum")
    recorder.install_taps("m", (declared, _tap(2, inputs=(), operation=None), _tap(3)), {})
    recorder.dump("x", 1)
    assert [(tap.inputs, tap.operation) for tap in recording.read().taps] == [
        (("attn_output", "layer_input@-1"), "sum"),
        ((), None),
        ((), None),
    ]


def test_coverage_is_known_of_a_run_without_an_end(recording: Recording) -> None:
    recorder = recording.start()
    taps = recorder.install_taps("m", (_tap(1), _tap(2)), {})
    taps[0].record(1)
    recorder.flush()
    from dumper import open_run

    assert [(tap.fired, tap.silent) for tap in open_run(recording.path).taps] == [(1, False), (0, True)]


def test_a_tap_whose_expression_fails_is_said_once_and_counted(
    recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recording.start()
    (tap,) = recorder.install_taps("m", (_tap(1),), {})
    recorder.dump("x", 1)
    for _ in range(3):
        try:
            raise AttributeError("no such thing")
        except AttributeError:
            tap.failed()
    run = recording.read()
    assert caplog.text.count("no such thing") == 1
    assert any("taps failed 3 times" in problem.message for problem in run.problems)


def test_taps_are_off_when_nothing_is_recorded(recording: Recording) -> None:
    recorder = recording.start(enable=False)
    (tap,) = recorder.install_taps("m", (_tap(1),), {})
    assert not tap.on
    recorder.configure(enable=True)
    assert tap.on
    recorder.configure(steps="1")
    assert not tap.on
    recorder.step()
    assert not tap.on
    recorder.step()
    assert tap.on
    recorder.step()
    assert not tap.on


def test_nothing_is_written_when_switched_off(recording: Recording) -> None:
    recorder = recording.start(enable=False)
    recorder.step()
    recorder.dump("x", torch.ones(3))
    recorder.flush()
    recorder.close()
    assert not recording.path.exists()


# Filters and levels


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('name == "attn"', ["attn0", "attn1", "attn2"]),
        ("layer_id in [0, 2]", ["attn0", "mlp0", "attn2", "mlp2"]),
        ('layer_id < 2 and name.startswith("m")', ["mlp0", "mlp1"]),
        pytest.param('search("^a", name) and not layer_id % 2', ["attn0", "attn2"], marks=needs_re2),
        ("rank == 1", []),
        ("step > 0", []),
        ("missing > 3", []),
        ("missing is None and layer_id == 1", ["attn1", "mlp1"]),
    ],
)
def test_filters(recording: Recording, text: str, wanted: list[str]) -> None:
    recorder = recording.start(filter=text)
    for layer in range(3):
        for name in ("attn", "mlp"):
            recorder.dump(name, 1, layer_id=layer)
    recorder.close()
    recorder.configure(filter=None, run="run")
    found = [f"{r.name}{r.tags['layer_id']}" for r in recording.read().records] if wanted else []
    assert found == wanted


def test_a_filter_over_steps(recording: Recording) -> None:
    recorder = recording.start(filter="step % 2")
    for number in range(4):
        recorder.step()
        recorder.dump("x", number)
    assert [record.value for record in recording.read().records] == [1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter": "layer_id = 3"}, "invalid syntax"),
        ({"filter": "__import__('os').system('x')"}, "__import__"),
        ({"filter": "search('(', name)"}, "regular expression"),
        ({"filter": "().__class__"}, "__class__"),
        ({"level": "sample(rows=0)"}, "sample"),
        ({"level": "full if layer_id ="}, "invalid syntax"),
        ({"steps": "9-3"}, "9-3"),
        ({"enabled": True}, "did you mean enable"),
        ({"memory_budget": "much"}, "'much'"),
        ({"when_full": "explode"}, "wait, drop"),
    ],
)
def test_bad_settings_are_refused_with_the_part_that_is_wrong(settings: dict[str, Any], message: str) -> None:
    recorder = Recorder(Settings())
    with pytest.raises(SettingsError, match=r"setting|did you mean") as caught:
        recorder.configure(**settings)
    assert message in str(caught.value)


def test_a_bad_variable_is_said_and_ignored() -> None:
    settings, (error,) = Settings.from_environment(
        {"TENSORTAP_ENABLE": "1", "TENSORTAP_COMPRESSION": "zip", "TENSORTAP_RUN": "mine"}
    )
    assert (settings.enable, settings.compression, settings.run) == (True, None, "mine")
    assert str(error).startswith("TENSORTAP_COMPRESSION")


@pytest.mark.parametrize(
    ("variable", "text"), [("FILTER", "layer_id in ["), ("LEVEL", "stat"), ("STEPS", "ten"), ("ON_NAN", "x")]
)
def test_a_variable_that_would_have_recorded_less_does_not_record_everything(variable: str, text: str) -> None:
    settings, (error,) = Settings.from_environment({"TENSORTAP_ENABLE": "1", f"TENSORTAP_{variable}": text})
    assert not settings.enable
    assert settings.controlled
    assert str(error).startswith(f"TENSORTAP_{variable}")
    assert "nothing is recorded" in str(error)


def _levels(recording: Recording, values: dict[str, Any], level: str) -> dict[str, Record]:
    recorder = recording.start(level=level)
    for name, value in values.items():
        recorder.dump(name, value)
    run = recording.read()
    assert not run.problems
    return {record.name: record for record in run.records}


VALUES = {
    "bf16": torch.tensor([[1.0, -2.0], [0.5, float("nan")], [float("inf"), 4.0]], dtype=torch.bfloat16),
    "int": torch.arange(12).reshape(6, 2),
    "numpy": np.array([[1.0, 2.0], [3.0, np.nan]]),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "text": "hello",
}


def test_level_stats(recording: Recording) -> None:
    records = _levels(recording, VALUES, "stats")
    assert {name: record.level for name, record in records.items()} == dict.fromkeys(VALUES, "stats") | {"text": "full"}
    assert records["bf16"].statistics == {
        "min": -2.0,
        "max": 4.0,
        "mean": 0.875,
        "abs_mean": 1.875,
        "l2": pytest.approx(21.25**0.5),
        "nan": 1,
        "inf": 1,
    }
    assert (records["bf16"].dtype, records["bf16"].shape) == ("bfloat16", (3, 2))
    assert records["int"].statistics == pytest.approx(
        {"min": 0, "max": 11, "mean": 5.5, "abs_mean": 5.5, "l2": 506**0.5, "nan": 0, "inf": 0}
    )
    assert records["numpy"].statistics == pytest.approx(
        {"min": 1, "max": 3, "mean": 2, "abs_mean": 2, "l2": 14**0.5, "nan": 1, "inf": 0}
    )
    assert records["empty"].statistics == dict.fromkeys(records["empty"].statistics or {}, 0)
    with pytest.raises(ValueError, match="recorded at level stats"):
        records["bf16"].array()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int16, torch.bool])
def test_statistics_on_the_device_and_on_the_host_agree(dtype: torch.dtype) -> None:
    from dumper.values.dtypes import as_array
    from dumper.values.measures import device_statistics, host_statistics, named_statistics

    value = torch.randn(50, 3).mul(5).to(dtype)
    data = value.view(torch.uint8).numpy().tobytes()
    array = as_array(data, str(dtype).removeprefix("torch."), (50, 3))
    assert named_statistics(device_statistics(value).tolist()) == pytest.approx(host_statistics(array), rel=1e-5)


def test_level_sample(recording: Recording) -> None:
    records = _levels(recording, VALUES, 'sample(stride=2) if name == "int"; sample(rows=2)')
    assert records["int"].array().tolist() == [[0, 1], [4, 5], [8, 9]]
    assert records["int"].shape == (6, 2)
    assert records["int"].sampled_rows == range(0, 6, 2)
    assert records["bf16"].array().shape == (2, 2)
    assert records["numpy"].array().tolist()[0] == [1.0, 2.0]
    assert (records["scalar"].level, float(records["scalar"].array())) == ("full", 3.0)
    assert records["empty"].array().shape == (0, 3)


def test_level_hash_is_equal_exactly_when_dtype_shape_and_bytes_are(recording: Recording) -> None:
    base = torch.arange(12, dtype=torch.int32)
    nan = torch.tensor([float("nan")])
    values = {
        "same": base.clone(),
        "same again": torch.arange(24, dtype=torch.int32)[:12],
        "strided": torch.stack([base, base], 1)[:, 0],
        "shape": base.reshape(3, 4),
        "dtype": base.view(torch.float32),
        "bit": base.clone().index_fill_(0, torch.tensor([11]), 10),
        "zero": torch.tensor([0.0]),
        "minus zero": torch.tensor([-0.0]),
        "nan": nan,
        "nan again": nan.clone(),
        "numpy": base.numpy(),
        "large": torch.zeros(500_000),
        "larger": torch.zeros(500_001),
    }
    prints = {name: record.fingerprint for name, record in _levels(recording, values, "hash").items()}
    assert prints["same"] == prints["same again"] == prints["strided"] == prints["numpy"]
    assert prints["nan"] == prints["nan again"]
    assert len(set(prints.values())) == len(prints) - 4


def test_rules_choose_levels_and_calls_overrule_them(recording: Recording) -> None:
    recorder = recording.start(level='hash if layer_id == 0; stats if name.startswith("m")')
    for layer in range(2):
        recorder.dump("attn", torch.ones(2), layer_id=layer)
        recorder.dump("mlp", torch.ones(2), layer_id=layer)
    recorder.dump("mlp", torch.ones(2), layer_id=0, level="full")
    assert [record.level for record in recording.read().records] == ["hash", "hash", "full", "stats", "full"]


def test_on_nan_writes_from_the_steps_before(recording: Recording) -> None:
    recorder = recording.start(on_nan=1)
    for step in range(6):
        recorder.step()
        recorder.dump("x", torch.full((3,), float("nan") if step == 4 else float(step)))
    assert [record.step for record in recording.read().records] == [3, 4, 5]


def test_capture_records_in_memory_and_writes_nothing(recording: Recording) -> None:
    recorder = recording.start(enable=False)
    value = torch.ones(3)
    with recorder.capture() as records:
        recorder.dump("x", value, layer_id=1)
        value.fill_(2)
    recorder.dump("x", value)
    assert [(record.name, record.value.tolist(), dict(record.tags)) for record in records] == [
        ("x", [1.0, 1.0, 1.0], {"layer_id": 1})
    ]
    assert not recording.path.exists()


def test_a_run_opens_from_its_index_alone(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recording.start()
    for number in range(20_000):
        recorder.dump("x", number, layer_id=number % 50)
    recorder.close()
    decoded = 0
    from dumper import open_run
    from dumper.readers.streams import segments

    original = segments.frames.decode_frame

    def counting(*arguments: Any, **more: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return original(*arguments, **more)

    monkeypatch.setattr(segments.frames, "decode_frame", counting)
    run = open_run(recording.path)
    assert len(run.records) == 20_000
    assert not run.problems
    assert len(run.select(layer_id=3)) == 400
    # Header, taps, step, coverage and index: not one record.
    assert decoded < 10
    assert run.records[12_345].value == 12_345


def test_on_nan_without_any_says_why_the_run_is_empty(recording: Recording) -> None:
    recorder = recording.start(on_nan=1)
    for step in range(4):
        recorder.step()
        recorder.dump("x", float(step))
        recorder.dump("x", torch.ones(2))
    run = recording.read()
    assert (len(run.records), run.losses) == (0, 0)
    assert [problem.kind for problem in run.problems] == ["empty"]
    assert "8 values were held back, since on_nan waited" in run.problems[0].message


def test_what_comes_outside_steps_alone_is_said(recording: Recording) -> None:
    recorder = recording.start()
    recorder.install_taps("m", (STEP_TAP,), {})
    recorder.dump("warm-up", 1)
    run = recording.read()
    assert "1 values came outside any step" in run.problems[0].message


def test_a_second_run_of_a_process_begins_at_step_0(recording: Recording) -> None:
    recorder = recording.start()
    for name in ("first", "second"):
        recorder.configure(run=name)
        for number in range(2):
            recorder.step()
            recorder.dump("x", number)
        recorder.close()
    from dumper import open_run

    for name in ("first", "second"):
        assert [record.step for record in open_run(recording.folder / name).records] == [0, 1]


def test_a_step_of_compiled_code_from_before_the_recording_is_not_in_the_run(recording: Recording) -> None:
    """Its tokens were forgotten; it is there only if something is recorded in it."""
    batch = {"input_ids": torch.zeros(1, 3, dtype=torch.int64)}
    for records in (0, 1):
        recorder = recording.start(enable=False, run=f"run-{records}")
        recorder.begin_step_from_graph(batch, {}, None)
        recorder.configure(enable=True)
        for _ in range(records):
            recorder.dump("x", 1)
        recorder.step(layout=TokenLayout("decode", (SequenceSpan("a", 3, 1),), 1))
        recorder.dump("x", 2)
        recording.close()
        run = open_run(recording.folder / f"run-{records}")
        assert [(step, run.layout(step, 0) is not None) for step in run.steps] == [(0, False)] * records + [(1, True)]

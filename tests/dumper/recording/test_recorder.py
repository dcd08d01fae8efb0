"""Steps, tags and taps, as the contracts in docs/contracts.md have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dumper import open_run
from dumper.cli import main
from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout
from tests.dumper.recording.conftest import Recording


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


def test_steps_of_a_training_that_is_resumed(recording: Recording) -> None:
    recorder = recording.start(first_step=3, steps="4-")
    for name in "abc":
        recorder.step()
        recorder.dump(name, 1)
    assert _steps(recording) == [("b", 4), ("c", 5)]


def test_records_before_the_first_step_of_such_a_training(recording: Recording) -> None:
    recorder = recording.start(first_step=3)
    recorder.dump("a", 1)
    recorder.step()
    recorder.dump("b", 1)
    assert _steps(recording) == [("a", 3), ("b", 4)]


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

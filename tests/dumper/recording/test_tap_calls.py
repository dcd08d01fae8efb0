"""Calls of ``record`` of a tap: those that come as others before run no Python, and record what Python would."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper import Run
from dumper.recording import taps as taps_module
from dumper.recording.context import ThreadTags
from dumper.recording.recorder import Recorder
from dumper.recording.shortcut import COMPILED, _NoWay, _PlainCall
from dumper.recording.taps import RecordCall, Tap
from tests.dumper.recording.conftest import Recording

compiled = pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
VALUE = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)


def install(recorder: Recorder, name: str = "x", **more: Any) -> Tap:
    info = {"id": f"m.f#1:{name}", "name": name, "kind": "dump", "target": "m.f", "file": "m.py", "line": 1, **more}
    return recorder.install_taps("m", (info,), {})[0]


def in_python(tap: Tap) -> Callable[..., None]:
    """The definition of ``tap.record``."""
    return RecordCall.__call__.__get__(tap.record)


def told(run: Run) -> list[Any]:
    return [
        (one.step, one.name, dict(one.tags), one.dims, one.level, one.dtype, one.shape, bytes(one.payload()))
        for one in run.records
    ]


@pytest.fixture
def no_thread_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another test has had tags of threads, they are looked for."""
    monkeypatch.setattr(ThreadTags, "in_use", False)


@compiled
def test_values_as_before_run_no_python(recording: Recording, no_thread_tags: None) -> None:
    recorder = recording.start()
    tap = install(recorder)
    called: list[list[str]] = []

    def note(frame: Any, event: str, argument: object) -> None:
        if event == "call":
            called[-1].append(frame.f_code.co_name)

    recorder.step()
    for number in range(8):
        called.append([])
        sys.setprofile(note)
        try:
            tap.record(VALUE + number, "t h", layer_id=number % 2)
        finally:
            sys.setprofile(None)
    assert called[0]
    assert called[6:] == [[], []]
    assert tap.fired == 8
    assert [one.array()[0, 0] for one in recording.read().records] == list(range(8))


@compiled
@pytest.mark.usefixtures("no_thread_tags")
def test_a_filter_that_rejects_all_runs_no_python_either(recording: Recording) -> None:
    recorder = recording.start(filter='name == ""')
    tap = install(recorder)
    recorder.step()
    for _ in range(3):
        tap.record(VALUE, "t h", layer_id=0)
    called = []
    sys.setprofile(lambda frame, event, argument: called.append(event) if event == "call" else None)
    try:
        tap.record(VALUE, "t h", layer_id=0)
    finally:
        sys.setprofile(None)
    assert not called
    assert tap.fired == 4


VALUES: tuple[Callable[[], Any], ...] = (
    VALUE.clone,
    lambda: VALUE + 1,
    lambda: VALUE[:2],
    VALUE.t,
    VALUE.float,
    lambda: torch.nn.Parameter(VALUE.clone()),
    lambda: torch.tensor(3.0),
    VALUE.to_sparse,
    lambda: 3,
    lambda: "text",
    lambda: [1, 2],
)
TAGS = st.dictionaries(
    st.sampled_from(["layer_id", "part", "expert", "kind", "at"]),
    st.sampled_from([0, 1, 300, True, False, None, "a", 1.0]),
    max_size=5,
)
CALLS = st.tuples(st.just("call"), st.sampled_from(VALUES), st.sampled_from([None, "t h", "t h # moe"]), TAGS)
CHANGES = st.sampled_from(
    [
        ("step",),
        ("configure", {"level": "stats"}),
        ("configure", {"level": "full"}),
        ("configure", {"filter": "layer_id == 1"}),
        ("configure", {"filter": None}),
        ("configure", {"enable": False}),
        ("configure", {"enable": True}),
        ("configure", {"enable_value": False}),
        ("configure", {"enable_value": True}),
        ("set_ctx", {"part": "common"}),
        ("set_ctx", {"part": None}),
        ("ctx", {"at": "thread"}),
    ]
)


def played(recording: Recording, moves: list[Any], record_of: Callable[[Tap], Callable[..., None]]) -> tuple[Any, ...]:
    recorder = recording.start()
    tap = install(recorder)
    record = record_of(tap)
    recorder.step()
    recorder.dump("first", 0)
    for kind, *rest in moves:
        if kind == "call":
            make, dims, tags = rest
            for _ in range(3):
                if tap.on:
                    record(make(), *(() if dims is None else (dims,)), **tags)
        elif kind == "ctx":
            with recorder.ctx(**rest[0]):
                if tap.on:
                    record(VALUE, "t h")
        elif kind == "step":
            recorder.step()
        else:
            getattr(recorder, kind)(**rest[0])
    run = recording.read()
    return told(run), run.losses, tap.fired, [tap.fired for tap in run.taps]


@compiled
@pytest.mark.usefixtures("no_thread_tags")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(CALLS, CALLS, CHANGES), min_size=1, max_size=12))
def test_what_is_recorded_is_what_python_records(moves: list[Any]) -> None:
    found = []
    for record_of in (lambda tap: tap.record, in_python):
        ThreadTags.in_use = False
        with tempfile.TemporaryDirectory() as folder:
            found.append(played(Recording(Path(folder)), moves, record_of))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["compiled", "plain"])
def test_what_does_not_fit_is_told_as_by_any_function(recording: Recording, kind: str) -> None:
    recorder = recording.start()
    tap = install(recorder)
    record = tap.record if kind == "compiled" else in_python(tap)
    recorder.step()
    for _ in range(3):
        record(VALUE, "t h", layer_id=0)
    for arguments in ((), (VALUE, "t", 3)):
        with pytest.raises(TypeError, match="positional argument"):
            record(*arguments)
    many = {f"tag{number}": number for number in range(40)}
    record(VALUE, "t h", **many)
    record(VALUE, None, **{"not a name": 1})
    run = recording.read()
    assert [dict(one.tags) for one in run.records[3:]] == [many, {"not a name": 1}]
    assert not run.losses


@compiled
@pytest.mark.usefixtures("no_thread_tags")
def test_a_value_that_is_lost_on_the_way_is_said_and_counted(
    recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recording.start()
    tap = install(recorder)
    recorder.step()
    recorder.dump("other", VALUE)
    session: Any = recorder._open.session
    numbers = iter([*range(2, 5)])

    def next_number() -> int:
        try:
            return next(numbers)
        except StopIteration:
            raise RuntimeError("no more numbers") from None

    session._next_number = next_number
    recorder.configure(level="full")  # the shortcut is found anew, with that
    for _ in range(6):
        tap.record(VALUE, "t h")
    said = [one.getMessage() for one in caplog.records if "no more numbers" in one.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("tensortap: x was not recorded")
    assert tap.fired == 6
    assert tap.failures == 0


@compiled
@pytest.mark.usefixtures("no_thread_tags")
def test_while_torch_compiles_taps_go_into_the_graph(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports that run Python set a flag; dynamo traces ``__call__`` (tests/dumper/capabilities/test_compile.py)."""
    recorder = recording.start()
    tap = install(recorder)
    recorder.step()
    for _ in range(3):
        tap.record(VALUE, "t h")
    into_graph: list[Any] = []
    monkeypatch.setattr(taps_module, "record_in_graph", lambda *given: into_graph.append(given))
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    tap.record(VALUE, "t h", layer_id=1)
    assert [(given[2] is VALUE, *given[3:]) for given in into_graph] == [(True, "t h", {"layer_id": 1})]
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", False)
    tap.record(VALUE, "t h")
    assert len(recording.read().records) == 4


@pytest.mark.slow
def test_a_tap_that_was_called_before_is_traced_without_a_break(recording: Recording) -> None:
    recorder = recording.start()
    tap = install(recorder)
    torch._dynamo.reset()

    def function(x: torch.Tensor, layer: int) -> torch.Tensor:
        y = x * 2
        if tap.on:
            try:
                tap.record(y, "t h", layer_id=layer)
            except Exception:
                tap.failed()
        return y + 1

    recorder.step()
    for _ in range(4):
        function(VALUE, 0)
    inside = torch.compile(function, backend="eager", fullgraph=True)
    for _ in range(2):
        inside(VALUE, 1)
    function(VALUE, 0)
    records = recording.read().records
    assert [one.tags["layer_id"] for one in records] == [0] * 4 + [1] * 2 + [0]
    assert tap.fired == 7


def test_without_a_compiled_module_calls_are_those_of_python(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain(_PlainCall):
        __slots__ = ("_recorder", "_source")
        __call__ = RecordCall.__call__
        lost = RecordCall.lost

        def __new__(cls, recorder: Any, source: Any) -> Plain:
            made = super().__new__(cls, recorder.way, source)
            made._recorder, made._source = recorder, source
            return made

    recorder = recording.start()
    recorder.way = _NoWay()  # type: ignore[assignment]
    monkeypatch.setattr(taps_module, "RecordCall", Plain)
    tap = install(recorder)
    recorder.step()
    for number in range(4):
        tap.record(VALUE + number, "t h", layer_id=number)
    assert tap.fired == 4
    assert [one.tags["layer_id"] for one in recording.read().records] == [0, 1, 2, 3]


@compiled
def test_taps_are_collected_with_their_recorder(tmp_path: Path) -> None:
    import gc
    import weakref

    recording = Recording(tmp_path)
    recorder = recording.start()
    tap = install(recorder)
    recorder.step()
    for _ in range(3):
        tap.record(VALUE, "t h")
    recording.close()
    gone = weakref.ref(recorder)
    del recorder, tap
    gc.collect()
    assert gone() is None

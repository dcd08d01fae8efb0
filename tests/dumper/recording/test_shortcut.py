"""The compiled shortcut: taken by tensors that come as others came before, and never with another result."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.memory.buffers import SLAB_BYTES
from dumper.recording import short_way
from dumper.recording.context import ThreadTags
from dumper.recording.recorder import Recorder
from dumper.recording.shortcut import COMPILED
from dumper.recording.torch_functions import Functions
from dumper.values.fingerprint import fingerprint
from dumper.values.measures import decode_statistics
from dumper.values.statistics import of_array
from dumper.writing.writer import OVERHEAD_BYTES
from tests.dumper.recording.conftest import Recording

pytestmark = pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")

VALUE = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What did not take the shortcut."""
    values: list[Any] = []
    submit_any = Recorder._submit_any

    def noted(self: Recorder, source: Any, value: Any, *more: Any) -> None:
        values.append(value)
        submit_any(self, source, value, *more)

    monkeypatch.setattr(Recorder, "_submit_any", noted)
    return values


def test_only_the_first_of_a_kind_goes_the_long_way(recording: Recording, long_way: list[Any]) -> None:
    recorder = recording.start()
    for step in range(4):
        with recorder.step():
            recorder.dump("first", VALUE + step, "t h", part="a", layer_id=0)
            for layer in range(3):
                recorder.dump("x", VALUE + layer, "t h", layer_id=layer)
    # Each once, the first twice: before torch was looked up as well. No step makes its first record longer.
    assert len(long_way) == 4 + 1
    run = recording.read()
    assert not run.problems
    assert not run.losses
    assert [(record.step, record.name, record.tags["layer_id"]) for record in run.records] == [
        (step, name, layer) for step in range(4) for name, layer in (("first", 0), ("x", 0), ("x", 1), ("x", 2))
    ]
    for record in run.records:
        added = record.step if record.name == "first" else record.tags["layer_id"]
        assert record.tensor().tolist() == (VALUE + added).tolist()
        assert record.dims == "t h"


def test_the_long_way_takes_no_lock_of_the_recorder(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recording.start()
    taken = []

    class Watched:
        def __enter__(self) -> None:
            taken.append(1)

        def __exit__(self, *error: object) -> None:
            """Nobody else records."""

    with recorder.step():
        recorder.dump("x", VALUE)
        recorder.dump("x", VALUE)
        with monkeypatch.context() as patched:
            patched.setattr(recorder, "_lock", Watched())
            for number in range(5):
                recorder.dump("n", number)
                recorder.dump("x", VALUE)
    assert not taken
    assert len(recording.read().records) == 12


def test_what_is_rejected_takes_it_too(recording: Recording, long_way: list[Any]) -> None:
    recorder = recording.start(filter='name == "x"')
    with recorder.step():
        for _ in range(4):
            recorder.dump("x", VALUE)
            recorder.dump("y", VALUE)
    assert len(long_way) == 3
    assert [record.name for record in recording.read().records] == ["x"] * 4


def another(value: torch.Tensor) -> torch.Tensor:
    """A tensor like it that is none to take from memory."""
    found = value.clone()
    found.untyped_storage().resize_(0)
    return found


def smaller(value: torch.Tensor) -> torch.Tensor:
    """One whose memory ends before it does."""
    found = value.repeat(2, 1)[3:]
    found.untyped_storage().resize_(found.storage_offset() * found.itemsize + found.nbytes - 1)
    return found


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda value: value.t().contiguous().t(),
        lambda value: value.as_subclass(Subclass),
        lambda value: value.double(),
        lambda value: value[:2],
        lambda value: value[None],
        lambda value: value.numpy(),
        another,
        smaller,
        torch._neg_view,
    ],
    ids=["strides", "subclass", "dtype", "rows", "dimensions", "array", "no memory", "less memory", "negated"],
)
@pytest.mark.parametrize("asks", ["functions", "python"])
def test_what_differs_goes_the_long_way(
    recording: Recording,
    long_way: list[Any],
    make: Callable[[torch.Tensor], Any],
    asks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if asks == "python":
        monkeypatch.setattr(short_way, "find_functions", lambda types, device: Functions())
    recorder = recording.start()
    value = VALUE.float()
    recorder.step()
    for _ in range(3):
        recorder.dump("x", value)
    assert len(long_way) == 2
    other = make(value)
    recorder.dump("x", other)
    assert len(long_way) == 3
    run = recording.read()
    if make in (another, smaller):
        assert (len(run.records), run.losses) == (3, 1)
        return
    assert run.records[-1].array().tolist() == other.tolist()


def test_tags_of_threads_are_added(recording: Recording, long_way: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadTags, "in_use", False)
    recorder = recording.start()
    recorder.step()
    recorder.dump("x", VALUE)
    long_way.clear()
    for number in range(2):
        recorder.dump("x", VALUE)
        with recorder.ctx(part=number):
            for _ in range(2):
                recorder.dump("x", VALUE)
    assert len(long_way) == 3
    assert [record.tags.get("part") for record in recording.read().records] == [None, None, 0, 0, None, 1, 1]


def test_what_changes_meanwhile_is_noticed(recording: Recording) -> None:
    recorder = recording.start()
    recorder.step()
    for _ in range(2):
        recorder.dump("x", VALUE)
    recorder.configure(filter='name != "x"')
    recorder.dump("x", VALUE)
    recorder.configure(filter=None, level="stats")
    recorder.dump("x", VALUE)
    with recorder.capture() as captured:
        recorder.dump("x", VALUE)
    recorder.configure(level="full", enable_value=False)
    recorder.dump("x", VALUE)
    recorder.configure(enable_value=True)
    recorder.dump("x", VALUE, grad=True)
    recorder.set_ctx(tag=1)
    recorder.dump("x", VALUE)
    recorder.configure(enable=False)
    recorder.dump("x", VALUE)
    recorder.configure(enable=True)
    recorder.set_ctx(tag=None)
    recorder.dump("x", VALUE)
    recorder.dump("x", VALUE)
    assert len(captured) == 1
    found = [(record.level, record.tags.get("tag")) for record in recording.read().records]
    assert (
        found == [("full", None), ("full", None), ("stats", None), ("full", None), ("full", 1)] + [("full", None)] * 2
    )


def test_after_the_end_it_is_closed(recording: Recording) -> None:
    recorder = recording.start()
    recorder.step()
    for _ in range(2):
        recorder.dump("x", VALUE)
    shortcut: Any = recorder._shortcut
    source = next(iter(recorder._open.session._plans.values())).source  # type: ignore[union-attr]
    assert shortcut(source, VALUE, None, {}, None) is True
    run = recording.read()
    assert len(run.records) == 3
    assert shortcut(source, VALUE, None, {}, None) is False


def test_a_lock_that_is_held_is_waited_for_by_the_long_way(recording: Recording, long_way: list[Any]) -> None:
    recorder = recording.start()
    recorder.step()
    for _ in range(3):
        recorder.dump("x", VALUE)
    writer = recorder._open.session._writer  # type: ignore[union-attr]
    with writer._lock:
        thread = threading.Thread(target=recorder.dump, args=("x", VALUE))
        thread.start()
        while len(long_way) < 3:
            assert thread.is_alive()
    thread.join()
    assert len(recording.read().records) == 4


@pytest.mark.parametrize("policy", ["wait", "drop"])
def test_the_budget_and_the_ends_of_slabs(recording: Recording, policy: str) -> None:
    value = torch.arange(64 << 8, dtype=torch.float32)
    budget = 4 * (value.nbytes + OVERHEAD_BYTES)
    recorder = recording.start(memory_budget=budget, when_full=policy)
    count = 3 * SLAB_BYTES // value.nbytes
    recorder.step()
    for number in range(count):
        recorder.dump("x", value + number)
    session = recorder._open.session
    run = recording.read()
    assert session._writer._reserved == 0  # type: ignore[union-attr]
    assert len(run.records) + run.losses == count
    if policy == "wait":
        assert not run.losses
        assert [record.array()[1] for record in run.records] == [number + 1 for number in range(count)]


def test_threads(recording: Recording) -> None:
    recorder = recording.start()
    recorder.step()

    def work(thread: int) -> None:
        for number in range(500):
            recorder.dump("x", torch.full((7,), 1000 * thread + number), thread=thread)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = recording.read()
    assert not run.problems
    assert not run.losses
    for number in range(4):
        mine = run.select(name="x", thread=number)
        assert [record.array().tolist() for record in mine] == [[1000 * number + at] * 7 for at in range(500)]


DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.complex64, torch.bool, torch.float8_e4m3fn]
CALLS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from(["plain", "t", "conj", "neg", "narrow", "columns", "every other"]),
        st.dictionaries(
            st.sampled_from(["layer_id", "part"]), st.sampled_from([0, 1, 1.0, True, "q", None]), max_size=2
        ),
        st.sampled_from([None, "t h"]),
        st.sampled_from(["dump", "dump", "dump", "step", "end", "again"]),
    ),
    min_size=1,
    max_size=25,
)


def make(dtype: torch.dtype, shape: list[int], kind: str, number: int) -> torch.Tensor:
    count = int(torch.tensor(shape, dtype=torch.int64).prod())
    value = (
        ((torch.arange(count + 1) * 7 + number) % 5).to(dtype)[1 if kind == "narrow" else 0 :][:count].reshape(shape)
    )
    if kind == "t" and value.dim() > 1:
        return value.transpose(0, 1)
    if kind == "columns" and value.dim() > 1:
        return value.repeat_interleave(20, -1).repeat_interleave(2, 0)[..., : 20 * shape[-1] - 3]
    if kind == "every other" and value.dim() > 0:
        return value.repeat_interleave(40, -1)[::2]
    if kind == "conj" and dtype.is_complex:
        return value.conj()
    if kind == "neg" and dtype == torch.float32:
        return torch._neg_view(value)
    return value


LEVELS = st.sampled_from(["full", "full", "hash", "stats", "sample(stride=2)", "sample(rows=1)"])


def recorded(folder: Path, name: str, calls: list[Any], outside: str, level: str) -> list[Any]:
    recorder = Recorder()
    recorder.configure(enable=True, control=False, dir=str(folder), run=name, outside_steps=outside, level=level)
    for number, (tap, dtype, shape, kind, tags, dims, what) in enumerate(calls):
        if what == "step":
            recorder.step()
        elif what == "end":
            recorder.end_step()
        for _ in range(2 if what == "again" else 1):
            recorder.dump(tap, make(dtype, shape, kind, number), dims, **tags)
    path = recorder.settings.run_path
    recorder.close()
    from dumper import open_run
    from dumper.reading.protocol import RunError

    try:
        run = open_run(path)
    except RunError:
        return []
    return [
        (
            *(record.name, record.step, record.tags, record.dims),
            *(record.level, record.dtype, record.shape, bytes(record.payload())),
        )
        for record in run.records
    ]


@settings(max_examples=60)
@given(CALLS, st.sampled_from(["record", "count"]), LEVELS, st.booleans())
def test_records_are_the_same_without_it(calls: list[Any], outside: str, level: str, in_one_call: bool) -> None:
    """Nor without the short way. ``in_one_call``: whether torch tells of tensors as other libraries ask it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patches:
        if not in_one_call:
            patches.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None, raising=False)
        taken = recorded(Path(folder), "taken", calls, outside, level)
        patches.setattr(short_way, "Shortcut", None)
        assert recorded(Path(folder), "not", calls, outside, level) == taken
        patches.setattr(short_way.ShortWay, "submit", lambda *arguments: False)
        assert recorded(Path(folder), "long", calls, outside, level) == taken


def test_places_by_the_thousand_and_tags_that_look_alike(recording: Recording, long_way: list[Any]) -> None:
    """More than are kept by their addresses, and objects that are made anew for each record."""
    recorder = recording.start()
    recorder.step()
    calls: list[dict[str, Any]] = [{"layer_id": layer} for layer in range(1500)]
    calls += [{"part": part} for part in (1, True, 1.0, "1", None, 0, False, "")]
    calls += [{"a": 1, "b": number, "c": "x" * number, "d": None} for number in range(3)]
    calls += [{"a": 1, "b": str(number), "c": None} for number in range(3)]
    for _ in range(3):
        for number, tags in enumerate(calls):
            fresh = {name: int(str(tag)) if type(tag) is int else tag for name, tag in tags.items()}
            recorder.dump("x", VALUE + number, " ".join(["t", "h"]), **fresh)
    # Of each kind the first, and those before torch was looked up.
    assert len(long_way) <= len(calls) + 1
    run = recording.read()
    assert len(run.records) == 3 * len(calls)
    for number, record in enumerate(run.records):
        tags = calls[number % len(calls)]
        assert {name: (type(tag), tag) for name, tag in record.tags.items()} == {
            name: (type(tag), tag) for name, tag in tags.items()
        }
        assert record.tensor().tolist() == (VALUE + number % len(calls)).tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int64", "float8_e4m3fn", "bool", "complex64"])
def test_statistics_on_the_host(recording: Recording, long_way: list[Any], dtype: str) -> None:
    """Of tensors that follow on in memory at once; of all others, and of types that it does not know, the long way."""
    recorder = recording.start(level="stats")
    value = torch.arange(600).reshape(20, 30).sub(300).to(getattr(torch, dtype))
    for _ in range(2):
        long_way.clear()
        with recorder.step():
            recorder.dump("announces the step", 1)
            recorder.dump("x", value, layer_id=0)
            recorder.dump("x", value, layer_id=1)
            recorder.dump("part", value[:, :20])
            recorder.dump("dense part", value[:, :20].contiguous())
            recorder.dump("turned", value.t())
            recorder.dump("large", torch.zeros(short_way.MEASURED_AT_ONCE + 1, dtype=torch.int8))
    known = dtype != "complex64"
    assert len(long_way) == (3 if known else 7)
    *records, part, dense, turned, large = recording.read().records[-6:]
    expected = decode_statistics(of_array(value.to(torch.float64).numpy() if known else value.numpy()))
    for record in (*records, turned):
        assert record.level == "stats"
        assert record.dtype == dtype
        assert record.statistics == pytest.approx(expected, rel=1e-6)
    assert part.statistics == dense.statistics
    assert large.statistics == dict.fromkeys(expected, 0)


@pytest.mark.parametrize("level", ["full", "hash", "sample(stride=3)"])
def test_rows_on_the_host(recording: Recording, long_way: list[Any], level: str) -> None:
    """Of a part of each row, and of every n-th of them; not of elements that lie apart."""
    recorder = recording.start(level=level)
    whole = torch.arange(10 * 96).reshape(10, 96).to(torch.bfloat16)
    values = [whole, whole[:, 32:64], whole[1::4], whole.view(10, 3, 32)[:, 1]]
    for _ in range(2):
        long_way.clear()
        with recorder.step():
            recorder.dump("announces the step", 1)
            for number, value in enumerate(values):
                recorder.dump("x", value, part=number)
            recorder.dump("apart", whole[:, ::2])
    assert len(long_way) == 1 + 1
    records = recording.read().select(name="x", step=1)
    for record, value in zip(records, values, strict=True):
        assert record.shape == tuple(value.shape)
        if level == "hash":
            dense = value.contiguous().view(torch.uint8).numpy().tobytes()
            assert record.fingerprint == fingerprint("bfloat16", value.shape, dense)
        else:
            kept = value[::3] if level.startswith("sample") else value
            assert record.tensor().tolist() == kept.tolist()


def test_a_nan_in_statistics_on_the_host_is_seen(recording: Recording, long_way: list[Any]) -> None:
    recorder = recording.start(level="stats", on_nan=1)
    for step in range(6):
        long_way.clear()
        with recorder.step():
            recorder.dump("announces the step", 1)
            recorder.dump("x", torch.full((3,), float("nan") if step == 4 else float(step)))
        assert len(long_way) == 1 or step == 0
    assert [record.step for record in recording.read().records if record.name == "x"] == [3, 4, 5]

"""The shortcut and direct launches for CUDA tensors, on a stand-in: what they record, and what happens where
they cannot."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper import open_run
from dumper.memory import device_buffers
from dumper.memory.cuda_runtime import DeviceError
from dumper.memory.device_buffers import DeviceBuffer
from dumper.memory.device_slabs import DeviceSlab, Lane
from dumper.memory.pinned import PinnedArena, PinnedBuffer
from dumper.recording import short_way
from dumper.recording.context import ThreadTags
from dumper.recording.shortcut import COMPILED
from dumper.settings import Settings
from dumper.values.measures import decode_statistics
from dumper.writing.writer import Batch, Writer
from tests.dumper.memory.stand_in_kernels import STREAM, VALUE, WAYS, Kernels, OnDevice, set_way, stand_in
from tests.dumper.recording.conftest import Recording


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
@pytest.mark.parametrize(
    ("level", "view"),
    [
        ("full", slice(None)),
        ("full", slice(8, 48)),
        ("sample(rows=20)", slice(None)),
        ("sample(stride=2)", slice(None)),
        ("stats", slice(None)),
        ("hash", slice(None)),
    ],
)
def test_values_as_before_take_the_shortcut(
    recording: Recording, kernels: Kernels, way: str, level: str, view: slice
) -> None:
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE[:, view])
    session: Any = recorder._open.session
    long_way = []
    submit = session.submit
    session.submit = lambda *arguments: (long_way.append(arguments), submit(*arguments))
    value = VALUE.clone()
    assert value.data_ptr() % 16 == 0
    for number in range(6):
        recorder.dump("device", OnDevice(value[:, view]))
        kernels.runtime.overwrite(value[:, view], np.float32(number).tobytes(), STREAM)
    host, *device = recording.read().records
    taken = 6 - len(long_way)
    # What the writer is waiting for is sent by the long way.
    runtime = kernels.runtime
    rows = view != slice(None) or level == "sample(stride=2)"
    assert taken == 0 if way == "long way" or (rows and way != "direct") else taken >= 3
    copied = 0 if way == "direct" or level in ("stats", "hash") else taken
    assert runtime.copies_of_compiled_code == copied
    assert runtime.launches_of_compiled_code == (taken if way == "direct" else 0)
    assert (kernels.exchange.on_device > 0) == (way == "direct" and kernels.exchange.capsule is not None)
    # What CUDA is asked is asked by compiled code.
    assert runtime.questions_of_compiled_code["capturing"] >= taken
    asks_for_device = level in ("stats", "hash") or way == "direct"
    assert (
        (runtime.questions_of_compiled_code["device"] >= taken)
        if asks_for_device
        else not runtime.questions_of_compiled_code["device"]
    )
    assert (kernels.exchange.told_stream >= taken) == (kernels.exchange.capsule is not None or not taken)
    assert runtime.loaded <= (way.startswith("direct") and level not in ("stats", "hash"))
    kept = {"stats": "statistics", "hash": "fingerprint"}.get(level)
    if kept:
        assert len({str(getattr(record, kept)) for record in device}) == 6
        assert getattr(device[0], kept) == getattr(host, kept)
    else:
        assert [record.array()[0, 0] for record in device] == [VALUE[:, view][0, 0], 0, 1, 2, 3, 4]
        assert device[0].array().tolist() == host.array().tolist()
    assert [record.shape for record in device] == [host.shape] * 6


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
@pytest.mark.parametrize("level", ["full", "stats"])
def test_an_error_of_the_device_on_the_shortcut_is_that_of_the_long_way(
    recording: Recording, kernels: Kernels, level: str
) -> None:
    recorder = recording.start(level=level)
    for _ in range(2):
        recorder.dump("x", OnDevice(VALUE))
    recorder.flush()
    session: Any = recorder._open.session
    if level == "stats":
        kernels.error = RuntimeError("an example")
        recorder.dump("x", OnDevice(VALUE))
        kernels.error = None
    else:
        kernels.runtime.dead = True
        recorder.dump("x", OnDevice(VALUE))
        kernels.runtime.dead = False
    recorder.dump("x", OnDevice(VALUE))
    recording.close()
    assert session._writer._reserved == 0
    counts = session.counts()
    assert counts["submitted"] == 4
    assert counts["written"] + counts["lost_encoding"] == 4


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
@pytest.mark.parametrize("level", ["full", "sample(stride=2)", "stats", "hash"])
def test_a_driver_that_refuses_is_asked_no_more_and_nothing_is_lost(
    recording: Recording, kernels: Kernels, level: str
) -> None:
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE)
    value = VALUE.clone()
    kernels.runtime.refuses_launches = True
    for _ in range(12):
        recorder.dump("x", OnDevice(value))
    kernels.runtime.refuses_launches = False
    for _ in range(12):
        recorder.dump("x", OnDevice(value))
    session: Any = recorder._open.session
    host, *device = recording.read().records
    assert session._writer._reserved == 0
    assert len(device) == 24
    assert kernels.runtime.launches_of_compiled_code == 0
    assert {bytes(record.payload()) for record in device} == {bytes(host.payload())}


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
def test_a_driver_that_refuses_a_thread_is_asked_by_others(recording: Recording, kernels: Kernels, way: str) -> None:
    recorder = recording.start(level="stats")
    recorder.dump("host", VALUE)
    value = VALUE.clone()
    for number in range(40):
        kernels.runtime.refuses_launches = number % 4 == 0
        recorder.dump("x", OnDevice(value))
    recording.read()
    if way == "direct":
        assert kernels.runtime.launches_of_compiled_code > 8


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
def test_kernels_are_launched_on_the_current_device_alone(recording: Recording, kernels: Kernels) -> None:
    recorder = recording.start()
    recorder.dump("host", VALUE)
    kernels.runtime.current_device = 1
    for _ in range(12):
        recorder.dump("x", OnDevice(VALUE))
    assert len(recording.read().records) == 13
    assert kernels.runtime.launches_of_compiled_code == 0
    if short_way.Shortcut is not None:
        assert kernels.runtime.copies_of_compiled_code >= 2


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
def test_direct_launches_can_be_switched_off(kernels: Kernels, tmp_path: Path) -> None:
    assert [Settings.from_environment(given)[0].direct_launch for given in ({}, {"TENSORTAP_DIRECT_LAUNCH": "0"})] == [
        True,
        False,
    ]
    recording = Recording(tmp_path)
    recorder = recording.start(level='stats if name == "stats"; full')
    launches = []
    for number, changed in enumerate([{"direct_launch": False}, {"direct_launch": True}, {"direct_launch": False}]):
        recorder.close()
        recorder.configure(run=f"run-{number}", **changed)
        recorder.dump("host", VALUE)
        for _ in range(8):
            recorder.dump("full", OnDevice(VALUE))
            recorder.dump("stats", OnDevice(VALUE))
        launches.append(kernels.runtime.launches_of_compiled_code)
    recording.close()
    assert launches[0] == 0
    assert launches[1] == launches[2] > 4


ON_DEVICE_CALLS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.complex64]),
        st.sampled_from([(4, 16), (3, 5), (2, 4, 64), (7,), (0, 4), ()]),
        st.sampled_from(["plain", "plain", "transposed", "columns", "unaligned", "negated"]),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=12,
)


def value_on_device(dtype: torch.dtype, shape: tuple[int, ...], kind: str, number: int) -> OnDevice:
    """Of a tensor that nobody frees before it is read: the stand-in has memory of the host."""
    count = int(np.prod(shape))
    memory = ((torch.arange(2 * count + 64) * 7 + number) % 5).to(dtype)
    begin = -memory.data_ptr() % 16 // dtype.itemsize + (1 if kind == "unaligned" else 0)
    value = memory[begin : begin + count].view(shape)
    if kind == "transposed" and value.dim() > 1:
        value = value.transpose(0, 1)
    elif kind == "columns" and value.dim() > 1:
        value = memory[begin : begin + 2 * count].view(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]
    elif kind == "negated" and dtype == torch.float32:
        value = torch._neg_view(value)
    return OnDevice(value)


def recorded_on_device(
    calls: list[Any], level: str, way: str, *, instead_on_host: bool = False
) -> tuple[list[Any], dict[str, int]]:
    from dumper.recording.recorder import Recorder

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patches:
        kernels = stand_in(patches)
        try:
            recorder = Recorder()
            recorder.configure(enable=True, control=False, dir=folder, run="r", outside_steps="record", level=level)
            recorder.configure(**set_way(way, kernels, patches))
            recorder.dump("host", VALUE)
            kept = []
            for number, (name, dtype, shape, kind, times) in enumerate(calls):
                for _ in range(times):
                    kept.append(value_on_device(dtype, shape, kind, number))
                    recorder.dump(name, kept[-1].tensor if instead_on_host else kept[-1])
            recorder.flush()
            counts = recorder._open.session.counts()  # type: ignore[union-attr]
            assert recorder._open.session._writer._reserved == 0  # type: ignore[union-attr]
            path = recorder.settings.run_path
            recorder.close()
            run = open_run(path)
            found = [
                (record.name, record.level, record.dtype, record.shape, record.sampled_rows, bytes(record.payload()))
                for record in run.records
            ]
        finally:
            kernels.runtime.end()
    return found, {name: number for name, number in counts.items() if name.startswith(("lost", "submitted"))}


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
@settings(max_examples=10)
@given(ON_DEVICE_CALLS, st.sampled_from(["full", "sample(rows=2)", "sample(stride=2)", "stats", "hash"]))
def test_what_is_on_a_device_is_recorded_alike_in_each_way(calls: list[Any], level: str) -> None:
    *others, long_way = (recorded_on_device(calls, level, way) for way in WAYS)
    assert others == [long_way] * len(others)
    # What the stand-in cannot take further than the short way is lost; all else is as on the host.
    host, _ = recorded_on_device(calls, level, "long way", instead_on_host=True)
    remaining = iter(map(comparable, host))
    assert all(comparable(record) in remaining for record in long_way[0])


def comparable(record: tuple[Any, ...]) -> tuple[Any, ...]:
    """With statistics as they are on any device: sums are not added in one order."""
    *known, payload = record
    if record[1] != "stats":
        return record
    return (*known, *(f"{number:.6g}" for number in decode_statistics(payload).values()))


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
@pytest.mark.parametrize("level", ["full", "sample(stride=2)", "stats", "hash"])
def test_the_shortcut_runs_no_function_of_ours(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Each would be read from memory anew between the kernels of a model."""
    monkeypatch.setattr(ThreadTags, "in_use", False)  # where another test has had tags of threads, they are looked for
    recording = Recording(tmp_path)
    recorder = recording.start(level=level)
    infos = ({"id": "m.f#1:x", "name": "x", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1},)
    (tap,) = recorder.install_taps("m", infos, {})
    recorder.dump("host", VALUE)
    value = OnDevice(VALUE.clone())
    ours = Path(short_way.__file__).parents[1]
    seen: list[set[str]] = []

    def note(frame: Any, event: str, argument: object) -> None:
        if event == "call" and ours in Path(frame.f_code.co_filename).parents:
            seen[-1].add(frame.f_code.co_name)

    # The first of a kind goes the long way, as does what sends a slab that the writer wants.
    while seen.count(set()) < 8 and len(seen) < 200:
        seen.append(set())
        sys.setprofile(note)
        try:
            tap.record(value, "t h", layer_id=0)
        finally:
            sys.setprofile(None)
    assert len(recording.read().records) == 1 + len(seen)
    assert seen.count(set()) == 8
    assert tap.fired == len(seen)
    assert kernels.runtime.launches_of_compiled_code >= 8


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
@pytest.mark.parametrize("level", ["full", "stats"])
def test_a_value_that_needs_another_slab_takes_the_shortcut(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    rows = 3 if level == "full" else 3 * 16
    monkeypatch.setattr(device_buffers, "SLAB_BYTES", 3 * 4096 if level == "full" else rows * 256)
    recording = Recording(tmp_path)
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE)
    session: Any = recorder._open.session
    long_way = []
    submit = session.submit
    session.submit = lambda *arguments: (long_way.append(arguments), submit(*arguments))
    value = VALUE.clone()
    for number in range(10 * rows):
        recorder.dump("device", OnDevice(value))
        kernels.runtime.overwrite(value, np.float32(number).tobytes(), STREAM)
    host, *device = recording.read().records
    # Where the writer has the lane just then, a value still takes the long way.
    assert len(long_way) < 10
    assert session._writer._reserved == 0
    if level == "full":
        assert [record.array()[0, 0] for record in device] == [VALUE[0, 0], *range(10 * rows - 1)]
    else:
        assert [record.statistics["max"] for record in device] == [host.statistics["max"]] * len(device)


@pytest.mark.skipif(not COMPILED, reason="the packages were installed without a C compiler")
def test_without_memory_on_the_host_no_value_is_lost_unseen(
    recording: Recording, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slab that cannot be sent where room is to be made."""
    monkeypatch.setattr(device_buffers, "SLAB_BYTES", 3 * 4096)
    recorder = recording.start()
    recorder.dump("host", VALUE)
    session: Any = recorder._open.session
    value = VALUE.clone()

    def refuse(self: PinnedArena, nbytes: int) -> PinnedBuffer:
        raise DeviceError("an example")

    for number in range(12):
        with pytest.MonkeyPatch.context() as patches:
            if number in (4, 5):
                patches.setattr(PinnedArena, "take", refuse)
            recorder.dump("device", OnDevice(value))
    recording.close()
    counts = session.counts()
    assert counts["submitted"] == 13
    assert counts["written"] + counts["lost_encoding"] == 13


def test_slabs_are_sent_once_in_a_nap(recording: Recording, kernels: Kernels) -> None:
    """And not as soon as the one before has come, with what the model has recorded meanwhile."""
    runtime: Any = kernels.runtime
    sent: list[int] = []
    send, serve = Lane._send, Writer._serve

    def at_once(self: Lane, slab: DeviceSlab, buffer: DeviceBuffer, host: PinnedBuffer | None = None) -> bool:
        sent.append(slab.taken)
        done = send(self, slab, buffer, host)
        with runtime._lock:
            while runtime._do_one():
                pass
        return done

    def beside_the_model(self: Writer, batch: Batch) -> bool:
        goes_on = serve(self, batch)
        if len(sent) < 50:
            recorder.dump("meanwhile", OnDevice(VALUE))
        return goes_on

    recorder = recording.start()
    recorder.dump("host", VALUE)
    recorder.flush()
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Lane, "_send", at_once)
        patches.setattr(Writer, "_serve", beside_the_model)
        recorder.step()
        recorder.dump("x", OnDevice(VALUE))
        deadline = time.monotonic() + 20
        while not sent and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(sent) <= 2, sent  # the nap of the writer is of half a minute
    assert recording.read().losses == 0

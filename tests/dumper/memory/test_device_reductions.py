"""Levels ``stats`` and ``hash`` of CUDA tensors, on a stand-in: what the kernels leave in a slab becomes the record."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper import open_run
from dumper.memory import device_reductions
from dumper.memory.buffers import BufferPool
from dumper.memory.device_reductions import RESULT_BYTES
from dumper.memory.device_staging import DeviceStager
from dumper.memory.staging import Stager
from dumper.recording import short_way
from dumper.recording.context import ThreadTags
from dumper.recording.graphs.handover import Handover
from dumper.recording.reductions import reduced_together
from dumper.recording.short_way import ShortWay
from dumper.recording.shortcut import COMPILED
from dumper.settings import Settings
from dumper.values import device_kernels
from dumper.values.device_kernels import launching, many, single
from dumper.values.device_kernels.single import Launch
from dumper.values.direct_launch import DirectLaunch
from dumper.values.fingerprint import block_sums
from dumper.values.measures import device_statistics
from dumper.writing import writer
from tests.dumper.memory.exchange import StandInExchange
from tests.dumper.memory.stand_in import StandInRuntime
from tests.dumper.recording.conftest import Recording

STREAM = 77
VALUE = torch.arange(-300, 700, dtype=torch.float32).reshape(10, 100)


class OnDevice:
    """A tensor of the host that says it is on a device. It has what the short way asks of a tensor, and no more."""

    is_cpu, is_cuda, is_nested = False, True, False

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def get_device(self) -> int:
        return 0


class Kernels:
    """Launches that a stand-in does later, in the order of the stream."""

    def __init__(self, runtime: StandInRuntime) -> None:
        self.runtime = runtime
        self.launched: list[str] = []
        self.prepared_directly = 0
        self.exchange = StandInExchange(lambda value: value.tensor if isinstance(value, OnDevice) else None, STREAM)
        self.scratch: set[int] = set()
        self.error: Exception | None = None

    def prepare_statistics(self, device: int, dtype: torch.dtype, length: int) -> Launch:
        return self.prepare("stats", dtype, length * dtype.itemsize)

    def prepare_fingerprint(self, device: int, nbytes: int) -> Launch:
        return self.prepare("hash", torch.uint8, nbytes)

    def prepare(self, kind: str, dtype: torch.dtype, nbytes: int) -> Launch:
        def run(address: int, *rest: int) -> None:
            self.launch(kind, address, dtype, nbytes, *rest)

        def compute(programs: int, threads: int, words: tuple[int, ...]) -> None:
            address, length, scratch, out, nothing = words
            assert (programs, threads, length, nothing) == (3, 256, nbytes, 0)
            self.launched.append(kind)
            self.scratch.add(scratch)
            self.compute(kind, address, dtype, nbytes, out)

        def direct(scratch: int) -> DirectLaunch:
            self.prepared_directly += 1
            handle = self.runtime.register(5, compute)
            return DirectLaunch(handle, 3, 256, 64, (0, nbytes, scratch, 0, 0), 0, 3)

        return Launch(run, direct)

    def launch(
        self, kind: str, address: int, dtype: torch.dtype, nbytes: int, out: int, scratch: int, stream: int
    ) -> None:
        if self.error is not None:
            raise self.error
        self.launched.append(kind)
        self.scratch.add(scratch)
        self.runtime._give(stream, "do", lambda: self.compute(kind, address, dtype, nbytes, out))

    def compute(self, kind: str, address: int, dtype: torch.dtype, nbytes: int, out: int) -> None:
        data = np.frombuffer((ctypes.c_char * nbytes).from_address(address), np.uint8)
        if kind == "hash":
            result = block_sums(data)
        else:
            value = torch.from_numpy(data.copy()).view(dtype) if nbytes else torch.empty(0, dtype=dtype)
            result = device_statistics(value).numpy().tobytes()
        ctypes.memmove(out, result, len(result))


class OfMany:
    """Stands for the launches of many."""

    def __init__(self, kernels: Kernels, kind: str, values: list[Any]) -> None:
        self.kernels, self.kind, self.values = kernels, kind, values

    def compile(self) -> None:
        pass

    def launch(self, out: int, stream: int) -> None:
        for number, value in enumerate(self.values):
            place = out + number * RESULT_BYTES[self.kind]
            self.kernels.launch(self.kind, value.data_ptr(), value.dtype, value.nbytes, place, 0, stream)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    kernels = stand_in(monkeypatch)
    yield kernels
    kernels.runtime.end()


def stand_in(patches: pytest.MonkeyPatch) -> Kernels:
    """A device that recorders of this process meet; its runtime is to be ended."""
    runtime = StandInRuntime(3)
    kernels = Kernels(runtime)
    look_up = ShortWay.look_up_torch

    def look_up_with_device(self: ShortWay) -> None:
        look_up(self)
        self._plain_tensors |= {OnDevice}  # type: ignore[arg-type]
        self._current_stream = lambda index: STREAM
        self._current_device = lambda: runtime.current_device
        self._is_capturing = lambda: False

    # The writer leaves slabs alone until it is asked for what is in them.
    patches.setattr(writer, "LONG_NAP", 30.0)
    patches.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    patches.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: STREAM, raising=False)
    patches.setattr(device_kernels, "available", lambda: True)
    stagers = [DeviceStager(runtime, BufferPool(1 << 26), direct_launch) for direct_launch in (False, True)]
    patches.setattr(Stager, "device", property(lambda self: stagers[self.direct_launch]))
    patches.setattr(Stager, "device_is_known", True)
    patches.setattr(torch.Tensor, "__dlpack_c_exchange_api__", kernels.exchange.capsule, raising=False)
    patches.setattr(ShortWay, "look_up_torch", look_up_with_device)
    patches.setattr(single, "prepare_statistics", kernels.prepare_statistics)
    patches.setattr(single, "prepare_fingerprint", kernels.prepare_fingerprint)
    patches.setattr(many, "StatisticsOfMany", lambda values: OfMany(kernels, "stats", values))
    patches.setattr(many, "FingerprintsOfMany", lambda values: OfMany(kernels, "hash", values))
    return kernels


WAYS = ("shortcut", "direct", "direct without the driver", "long way")
"""``direct`` is what settings say by default; ``shortcut``: without ``direct_launch``."""


def set_way(way: str, kernels: Kernels, patches: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of one of the WAYS."""
    kernels.runtime.has_driver = way != "direct without the driver"
    if way == "long way":
        patches.setattr(short_way, "Shortcut", None)
    return {} if way.startswith("direct") else {"direct_launch": False}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recording(tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch, way: str) -> Iterator[Recording]:
    """Closed before the stand-in ends, which the writer waits for."""
    made = Recording(tmp_path, **set_way(way, kernels, monkeypatch))
    yield made
    made.close()
    if not way.startswith("direct"):
        assert kernels.runtime.loaded + kernels.runtime.launches_of_compiled_code == 0
        assert kernels.prepared_directly + kernels.exchange.on_device == 0


@pytest.mark.parametrize("level", ["stats", "hash"])
def test_a_record_is_that_of_the_same_values_on_the_host(recording: Recording, kernels: Kernels, level: str) -> None:
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE)
    value = VALUE.clone()
    for _ in range(3):
        recorder.dump("device", OnDevice(value))
    # What the model does next, on its stream.
    kernels.runtime.overwrite(value.data_ptr(), bytes(value.nbytes), STREAM)
    recorder.dump("zeros", OnDevice(value))
    host, *device, zeros = recording.read().records
    assert kernels.launched == [level] * 4
    assert len(kernels.scratch) == 1
    assert [record.level for record in device] == [level] * 3
    assert {(record.dtype, record.shape) for record in device} == {("float32", (10, 100))}
    kept = "fingerprint" if level == "hash" else "statistics"
    assert {str(getattr(record, kept)) for record in device} == {str(getattr(host, kept))}
    assert getattr(zeros, kept) != getattr(host, kept)
    assert len({record.fingerprint_scheme for record in (host, *device)}) == 1


@pytest.mark.parametrize("level", ["stats", "hash"])
def test_values_of_a_graph_are_reduced_together(recording: Recording, kernels: Kernels, level: str) -> None:
    recorder = recording.start(level=level)
    values = [VALUE, VALUE.view(-1)[:7].clone(), torch.ones(3, 5)]
    for number, value in enumerate(values):
        recorder.dump(f"x{number}", value)
    session: Any = recorder._open.session
    plans = [plan for plan in session._plans.values() if plan.source.name.startswith("x")]
    together = reduced_together(level, [(plan, OnDevice(value)) for plan, value in zip(plans, values, strict=True)])
    handover = Handover(session._writer, session._stager, session.status, session._next_number, session._reduced)
    assert [handover.reduce(together, None) for _ in range(2)] == [True, True]
    kernels.error = RuntimeError("an example")
    assert not handover.reduce(together, None)
    run = recording.read()
    assert kernels.launched == [level] * 6
    kept = "fingerprint" if level == "hash" else "statistics"
    for number in range(3):
        host, *replays = (record for record in run.records if record.name == f"x{number}")
        assert [str(getattr(record, kept)) for record in replays] == [str(getattr(host, kept))] * 2
        assert {record.shape for record in replays} == {host.shape}


def test_what_kernels_cannot_read_goes_another_way(recording: Recording, kernels: Kernels) -> None:
    """Types and places that no kernel reads are copied, and fingerprinted on the host."""
    recorder = recording.start(level="hash")
    recorder.dump("host", VALUE)
    way = recorder._open.session._short_way
    for value in (OnDevice(VALUE.t()), OnDevice(VALUE.view(-1)[1:])):
        assert not way.submit(next(iter(recorder._open.session._plans.values())), value, None)
    assert not kernels.launched


@pytest.mark.parametrize("level", ["full", "sample(rows=3)", "sample(rows=30)", "sample(stride=4)"])
@pytest.mark.parametrize("view", [slice(None), slice(10, 30)], ids=["contiguous", "some columns"])
def test_rows_are_copied_from_where_they_are(recording: Recording, kernels: Kernels, level: str, view: slice) -> None:
    recorder = recording.start(level=level)
    recorder.dump("host", VALUE[:, view])
    value = VALUE.clone()
    for _ in range(2):
        recorder.dump("device", OnDevice(value[:, view]))
    kernels.runtime.overwrite(value.data_ptr(), bytes(value.nbytes), STREAM)
    host, *device = recording.read().records
    assert len(device) == 2
    for record in device:
        assert (record.shape, record.sampled_rows) == (host.shape, host.sampled_rows)
        assert record.array().tolist() == host.array().tolist()


def test_while_a_nan_is_waited_for_values_are_looked_at(recording: Recording, kernels: Kernels) -> None:
    recorder = recording.start(level='hash if name != "stats"; stats', on_nan=1)
    recorder.dump("host", VALUE)
    value, nan = OnDevice(VALUE.clone()), OnDevice(torch.full((5,), float("nan")))
    recorder.dump("hash", value)
    recorder.dump("stats", value)
    assert kernels.launched == ["stats"]
    recorder.dump("stats", nan)
    host, hashed, *_ = recording.read().records
    assert hashed.fingerprint == host.fingerprint


def test_a_kernel_that_cannot_be_launched_is_given_up_once(
    recording: Recording, kernels: Kernels, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recording.start(level="hash")
    recorder.dump("host", VALUE)
    session: Any = recorder._open.session
    plan = next(iter(session._plans.values()))
    kernels.error = RuntimeError("Triton Error [CUDA]: an example")
    for _ in range(3):
        assert not session._short_way.submit(plan, OnDevice(VALUE.clone()), None)
    kernels.error = None
    assert not session._short_way.submit(plan, OnDevice(VALUE.clone()), None)
    assert not kernels.launched
    assert len([one for one in caplog.records if "an example" in one.getMessage()]) == 1
    recording.close()
    assert session._writer._reserved == 0


def test_scratch_is_cleared_once(kernels: Kernels) -> None:
    reductions = device_reductions.DeviceReductions(kernels.runtime, False)
    for _ in range(2):
        reductions.writer("hash", OnDevice(VALUE), 0, STREAM)  # type: ignore[arg-type]
    (address,) = reductions._scratch.values()
    assert len(kernels.runtime.memory[address]) == launching.SCRATCH_BYTES


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
        kernels.runtime.overwrite(value[:, view].data_ptr(), np.float32(number).tobytes(), STREAM)
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


def recorded_on_device(calls: list[Any], level: str, way: str) -> tuple[list[Any], dict[str, int]]:
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
                    recorder.dump(name, kept[-1])
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
    while seen.count({"record", "submit"}) < 8 and len(seen) < 200:
        seen.append(set())
        sys.setprofile(note)
        try:
            tap.record(value, "t h", layer_id=0)
        finally:
            sys.setprofile(None)
    assert len(recording.read().records) == 1 + len(seen)
    assert seen.count({"record", "submit"}) == 8
    assert kernels.runtime.launches_of_compiled_code >= 8

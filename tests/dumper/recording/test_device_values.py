"""The writer and values that come from a device, which a stand-in plays: their order, and who waits for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dumper.memory.buffers import BufferPool
from dumper.memory.cuda_runtime import DeviceError
from dumper.memory.device_slabs import DeviceLanes
from dumper.memory.pinned import PinnedArena
from dumper.recording.recorder import Recorder
from dumper.writing.items import Description
from dumper.writing.writer import Writer
from tests.dumper.memory.stand_in import StandInRuntime
from tests.dumper.recording.conftest import Recording


class Device:
    """A stand-in device beside a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.runtime = StandInRuntime()
        self.lanes = DeviceLanes(self.runtime, PinnedArena(self.runtime, BufferPool(1 << 26)))
        self._recorder = recorder
        recorder.dump("first", torch.zeros(2))
        session: Any = recorder._open.session
        self.writer: Writer = session._writer
        self._session = session

    def dump(self, number: int, stream: int = 5, elements: int = 100) -> bool:
        """Record a value that the model overwrites at once."""
        value = torch.full((elements,), number, dtype=torch.int32)
        # What it is called is worked out by a plan, as for any value.
        plan = self._session._make_plan(self._source(), None, {"i": number}, None)
        description: Description = plan.describe("int32", (elements,), False)
        content = value.numpy().tobytes()
        address = self.runtime.upload(content)
        self._session.status.submitted(self._session._next_number())
        lane = self.lanes.lane(0, stream)
        put = self.writer.put_from_device(description, len(content), None, lane.copy, address, len(content))
        self.runtime.overwrite(address, bytes(len(content)), stream)
        return put

    def _source(self) -> Any:
        from dumper.values.source import Source

        return Source.of("x")


@pytest.fixture
def device(recording: Recording) -> Iterator[Device]:
    made = Device(recording.start())
    yield made
    made.runtime.held = False
    recording.close()
    made.runtime.end()


def _values(recording: Recording) -> list[int]:
    records = [record for record in recording.read().records if record.name == "x"]
    assert all((record.array() == record.array().flat[0]).all() for record in records)
    return [int(record.array().flat[0]) for record in records]


def test_values_of_the_host_and_of_streams_are_written_in_the_order_of_the_calls(
    recording: Recording, device: Device
) -> None:
    for number in range(120):
        if number % 3 == 2:
            device._recorder.dump("x", torch.full((100,), number), i=number)
        else:
            device.dump(number, stream=number % 3)
    assert _values(recording) == list(range(120))


def test_what_an_idle_model_has_put_is_written_without_a_flush(recording: Recording, device: Device) -> None:
    for number in range(5):
        device.dump(number)
    deadline = time.monotonic() + 60
    while device.writer._queue or device.writer._reserved:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert device.runtime.queries == 0


def test_the_writer_goes_on_while_a_stream_is_being_captured(recording: Recording, device: Device) -> None:
    asked = threading.Event()
    device.runtime.capturing.add(5)
    device.runtime.on_question = asked.set
    device.dump(0)
    assert asked.wait(60)
    assert not device.runtime.waited_for
    device.runtime.capturing.clear()
    assert _values(recording) == [0]


def test_a_flush_waits_for_a_device_that_lags_behind(recording: Recording, device: Device) -> None:
    device.runtime.held = True
    for number in range(10):
        device.dump(number)
    flushed = threading.Event()
    thread = threading.Thread(target=lambda: (device._recorder.flush(), flushed.set()))
    thread.start()
    assert not flushed.wait(0.05)
    device.runtime.held = False
    assert flushed.wait(60)
    thread.join()
    assert device.writer._reserved == 0


def test_a_model_that_waits_for_room_gets_it_from_values_of_a_device(recording: Recording) -> None:
    device = Device(recording.start(memory_budget="64KiB", when_full="wait"))
    try:
        assert all(device.dump(number, elements=4000) for number in range(40))
        assert _values(recording) == list(range(40))
    finally:
        device.runtime.end()


def test_a_device_that_failed_before_the_writer_saw_it_loses_its_values_alone(
    recording: Recording, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        raise DeviceError("SetDevice of the CUDA runtime failed with error 700")

    monkeypatch.setattr(device.runtime, "select", fail)
    device.dump(0)
    device._recorder.dump("x", torch.full((100,), 1), i=1)
    run = recording.read()
    assert [int(record.array()[0]) for record in run.records if record.name == "x"] == [1]
    assert run.losses == 1


def test_a_value_that_does_not_arrive_is_lost_while_values_are_held_back_as_well(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(recording.start(on_nan=3))

    def refuse(nbytes: int) -> int:
        raise DeviceError("HostAlloc of the CUDA runtime failed with error 2")

    try:
        device.lanes.words(0)
        monkeypatch.setattr(device.runtime, "pin", refuse)
        device.dump(0)
        device._recorder.dump("nan", torch.tensor([float("nan")]))
        device._recorder.dump("x", torch.full((100,), 1), i=1)
        run = recording.read()
        assert [record.name for record in run.records] == ["first", "nan", "x"]
        assert run.losses == 1
    finally:
        device.runtime.end()

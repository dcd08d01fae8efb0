"""Small and large values of a device, on a stand-in whose streams are as late and as disorderly as is allowed."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dumper.memory import arrivals, device_buffers, device_copies
from dumper.memory.buffers import BufferPool
from dumper.memory.cuda_runtime import DeviceError
from dumper.memory.device_copies import DeviceCopier
from dumper.memory.device_slabs import DeviceLanes, DeviceSlab, Lane
from dumper.memory.pinned import PinnedArena
from tests.dumper.memory.stand_in import StandInRuntime


class Device:
    """A stand-in device with lanes over small slabs."""

    def __init__(self, seed: int = 0) -> None:
        self.runtime = StandInRuntime(seed)
        self.pool = BufferPool(1 << 20)
        self.arena = PinnedArena(self.runtime, self.pool)
        self.lanes = DeviceLanes(self.runtime, self.arena)

    def lane(self, stream: int = 77) -> Lane:
        return self.lanes.lane(0, stream)

    def put(self, content: bytes, lane: Lane, stream: int) -> tuple[DeviceSlab, int, bytes]:
        """Copy a value that the model overwrites right afterwards."""
        address = self.runtime.upload(content)
        slab, offset = lane.copy(address, len(content))
        self.runtime.overwrite(address, bytes(len(content)), stream)
        return slab, offset, content


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_buffers, "SLAB_BYTES", 4096)
    monkeypatch.setattr(device_buffers, "MOST_SLABS", 3)


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.runtime.end()


def _is_there(placed: tuple[DeviceSlab, int, bytes]) -> bool:
    slab, offset, content = placed
    return bytes(slab.view[offset : offset + len(content)]) == content


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3000), st.booleans()), max_size=40), st.integers(0, 99))
def test_every_value_is_what_it_was_when_it_was_put(values: list[tuple[int, int, bool]], seed: int) -> None:
    device = Device(seed)
    waiting: list[tuple[DeviceSlab, int, bytes]] = []
    try:
        for number, (stream, nbytes, read) in enumerate(values):
            content = bytes((number * 7 + position) % 251 for position in range(nbytes))
            waiting.append(device.put(content, device.lane(stream), stream))
            if read:  # the writer comes by
                for placed in waiting:
                    assert _is_there(placed)
                    placed[0].release(1)
                waiting.clear()
        for placed in waiting:
            assert _is_there(placed)
    finally:
        device.runtime.end()


def test_the_model_waits_for_nothing_while_slabs_are_left(device: Device) -> None:
    device.runtime.held = True
    placed = [device.put(bytes([number]) * 1000, device.lane(), 77) for number in range(9)]
    device.runtime.held = False
    assert all(_is_there(one) for one in placed)


def test_the_writer_never_asks_the_device_while_it_answers_in_time(device: Device) -> None:
    placed = [device.put(b"x" * 500, device.lane(), 77) for _ in range(30)]
    assert all(_is_there(one) for one in placed)
    assert device.runtime.queries == 0


def test_the_transfer_waits_for_the_event_that_the_model_recorded_and_the_model_for_none(device: Device) -> None:
    placed = device.put(b"y" * 100, device.lane(), 77)
    assert _is_there(placed)
    side = device.lanes.words(0).stream
    assert {stream for stream, _ in device.runtime.waited_for} == {side}


def test_a_slab_goes_back_when_all_of_it_is_written(device: Device) -> None:
    lane = device.lane()
    first = device.put(b"a" * 3000, lane, 77)
    second = device.put(b"b" * 3000, lane, 77)
    assert first[0] is not second[0]
    assert _is_there(first)
    assert _is_there(second)
    assert first[0].host is not None
    address = first[0].host.address
    first[0].release(1)
    third = device.put(b"c" * 100, lane, 77)
    assert _is_there(second)
    assert _is_there(third)
    assert third[0].host is not None
    assert third[0].host.address == address


def test_device_memory_is_bounded_and_used_again_before_the_host_has_written_anything(device: Device) -> None:
    allocated = device.runtime.allowed_allocations
    placed = [device.put(bytes([number]) * 2500, device.lane(), 77) for number in range(20)]
    assert all(_is_there(one) for one in placed)
    # Three slabs, and the one word that is copied behind each.
    assert allocated - device.runtime.allowed_allocations == 4


def test_streams_share_the_memory_of_their_device(device: Device) -> None:
    allocated = device.runtime.allowed_allocations
    for number in range(30):
        placed = device.put(bytes([number]) * 2500, device.lane(number), number)
        assert _is_there(placed)
    assert allocated - device.runtime.allowed_allocations == 2


def test_a_stream_gets_its_slab_when_the_others_have_used_up_the_memory(device: Device) -> None:
    device.runtime.held = True
    placed = [device.put(bytes([number]) * 2500, device.lane(number), number) for number in range(8)]
    device.runtime.held = False
    assert all(_is_there(one) for one in placed)


def test_a_device_without_memory_makes_do_with_the_slabs_it_has(device: Device) -> None:
    first = device.put(b"a" * 3000, device.lane(), 77)
    device.runtime.allowed_allocations = 0
    placed = [device.put(bytes([number]) * 3000, device.lane(), 77) for number in range(5)]
    assert _is_there(first)
    assert all(_is_there(one) for one in placed)


def test_a_device_without_any_memory_is_an_error_and_not_a_wait(device: Device) -> None:
    lane = device.lane()
    device.runtime.allowed_allocations = 0
    with pytest.raises(DeviceError, match="error 2"):
        lane.copy(device.runtime.upload(b"abc"), 3)


def test_a_device_that_has_failed_fails_the_values_and_holds_nobody_up(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "ASKED_AFTER", 0.01)
    lane = device.lane()
    device.runtime.held = True
    sent = device.put(b"a" * 3000, lane, 77)
    filling = device.put(b"b" * 3000, lane, 77)
    device.runtime.dead = True
    for placed in (sent, filling):
        with pytest.raises(DeviceError):
            _ = placed[0].view
        placed[0].release(1)
    with pytest.raises(DeviceError):
        lane.copy(1, 3)


def test_threads_share_a_lane(device: Device) -> None:
    lane, placed = device.lane(), []

    def put(thread: int) -> None:
        for number in range(50):
            placed.append(device.put(bytes([thread, number]) * 100, lane, 77))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(placed) == 200
    assert all(_is_there(one) for one in placed)


# Large values


def _copier(device: Device) -> DeviceCopier:
    return DeviceCopier(device.runtime, 0, device.lanes.words(0), device.arena)


@pytest.mark.parametrize("keeps_memory", [True, False])
def test_large_values_are_what_they_were_and_their_clones_are_let_go_of(device: Device, keeps_memory: bool) -> None:
    device.runtime.keeps_memory = keeps_memory
    copier = _copier(device)
    copies = []
    for number in range(10):
        value = torch.full((3000,), number, dtype=torch.int32)
        copies.append((copier.start(value, 5), value.clone()))
    for copy, value in copies:
        assert bytes(copy.wait()) == value.numpy().tobytes()
        assert copy.clone is None
        copy.release()
    assert device.pool.held_bytes <= 1 << 20


def test_the_memory_of_a_clone_is_kept_by_whoever_can_wait_for_it(device: Device) -> None:
    device.runtime.held = True
    copier = _copier(device)
    first = copier.start(torch.zeros(3000), 5)
    assert first.clone is None
    assert len(device.runtime.kept) == 1
    device.runtime.keeps_memory = False
    second = copier.start(torch.zeros(3000), 5)
    assert second.clone is not None
    device.runtime.held = False
    for copy in (first, second):
        copy.wait()
    _until(lambda: not device.runtime.kept)
    assert second.clone is None


def test_clones_on_their_way_are_bounded(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_copies, "MOST_BYTES_OF_CLONES", 30_000)
    copier = _copier(device)
    copies = [copier.start(torch.full((3000,), number, dtype=torch.int32), 5) for number in range(8)]
    assert len(device.runtime.kept) <= 2
    assert [int(memoryview(bytes(copy.wait())).cast("i")[0]) for copy in copies] == list(range(8))


def test_without_memory_for_a_clone_the_stream_of_the_model_makes_the_transfer(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = torch.arange(3000)

    def no_memory(self: Any, **options: Any) -> Any:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "clone", no_memory)
    copy = _copier(device).start(value, 5)
    monkeypatch.undo()
    assert copy.clone is None
    assert bytes(copy.wait()) == value.numpy().tobytes()


def test_without_memory_on_the_host_values_are_lost_and_the_slab_serves_again(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = device.lane()

    def refuse(nbytes: int) -> int:
        raise DeviceError("HostAlloc of the CUDA runtime failed with error 2")

    with monkeypatch.context() as context:
        context.setattr(device.runtime, "pin", refuse)
        lost = device.put(b"a" * 3000, lane, 77)
        with pytest.raises(DeviceError, match="HostAlloc"):
            _ = lost[0].view
        lost[0].release(1)
    allocations = device.runtime.allowed_allocations
    assert _is_there(device.put(b"b" * 3000, lane, 77))
    assert device.runtime.allowed_allocations == allocations


def test_the_writer_sends_what_there_is_and_looks_again_without_waiting(device: Device) -> None:
    device.runtime.held = True
    lane = device.lane()
    first = device.put(b"a" * 100, lane, 77)
    assert not first[0].is_there
    second = device.put(b"b" * 100, lane, 77)
    assert first[0] is not second[0]
    # One at a time, so that a device that lags behind does not use up its slabs.
    assert not second[0].is_there
    third = device.put(b"c" * 100, lane, 77)
    assert third[0] is second[0]
    device.runtime.held = False
    for placed in (first, second, third):
        _until(lambda slab=placed[0]: slab.is_there)
        assert _is_there(placed)
    assert device.runtime.queries == 0


def test_a_stream_that_is_being_captured_is_left_alone(device: Device) -> None:
    placed = device.put(b"a" * 100, device.lane(), 77)
    device.runtime.capturing.add(77)
    assert not placed[0].is_there
    assert not device.runtime.waited_for
    device.runtime.capturing.clear()
    _until(lambda: placed[0].is_there)
    assert _is_there(placed)


def test_an_event_that_may_belong_to_a_capture_is_waited_for_by_nobody(device: Device) -> None:
    placed = device.put(b"a" * 100, device.lane(), 77)
    questions = iter(range(10))
    # The capture begins when the event is recorded.
    device.runtime.on_question = lambda: next(questions) == 2 and device.runtime.capturing.add(77)
    assert not placed[0].is_there
    assert not device.runtime.waited_for
    device.runtime.on_question = None
    device.runtime.capturing.clear()
    assert _is_there(placed)


def test_who_waits_inside_a_capture_for_what_was_before_it_is_not_held_up_for_ever(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "ASKED_AFTER", 0.01)
    lane = device.lane()
    placed = device.put(b"a" * 100, lane, 77)
    device.runtime.capturing.add(77)
    with pytest.raises(DeviceError, match="captured"):
        _ = placed[0].view
    device.runtime.capturing.clear()
    assert _is_there(device.put(b"b" * 100, lane, 77))


def test_streams_that_may_be_destroyed_are_touched_by_nobody_but_their_user(device: Device) -> None:
    device.runtime.from_outside.add(77)
    placed = device.put(b"a" * 100, device.lane(), 77)
    given = device.runtime.given[77]
    assert _is_there(placed)
    assert device.runtime.given[77] == given


def test_a_tap_gives_its_stream_one_copy_and_nothing_else(device: Device) -> None:
    lane, source = device.lane(), device.runtime.upload(b"a" * 10)
    for _ in range(5):
        lane.copy(source, 10)
    assert device.runtime.given[77] == 5


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_memory_of_the_device_that_nobody_uses_is_let_go_of_and_made_anew(device: Device) -> None:
    words = device.lanes.words(0)
    there = len(words._free)
    for number in range(1, 4):
        assert _is_there(device.put(b"a" * 3000, device.lane(), 77))
        device.lanes.let_go()
        assert len(device.runtime.freed) == number
        assert len(words._free) == there
    filling = device.put(b"b" * 100, device.lane(), 77)
    device.lanes.let_go()
    assert _is_there(filling)
    assert len(device.runtime.freed) == 3


def test_memory_of_the_device_is_freed_with_the_lanes(device: Device) -> None:
    assert _is_there(device.put(b"a" * 3000, device.lane(), 77))
    del device.lanes
    gc.collect()
    assert len(device.runtime.freed) == 1

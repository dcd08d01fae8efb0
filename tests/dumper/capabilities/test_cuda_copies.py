"""Copies from a device, with stand-ins for its streams and events: what waits for what, and what is used again when.

A real device is needed to see the copies run beside the model; the order in which they are asked for is tested here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from dumper.recording.cuda import DeviceCopier, pinned_buffer
from dumper.recording.pools import BufferPool, Shelf


@dataclass
class StandInDevice:
    """A device with a compute stream, on which everything is done at once and noted."""

    log: list[str] = field(default_factory=list)
    current: str = "compute"
    capturing: bool = False


class StandInStream:
    def __init__(self, device: StandInDevice, name: str) -> None:
        self._device = device
        self.name = name

    def wait_stream(self, other: StandInStream) -> None:
        self._device.log.append(f"{self.name} waits for {other.name}")


class StandInEvent:
    def __init__(self, device: StandInDevice) -> None:
        self._device = device

    def record(self, stream: StandInStream) -> None:
        self._device.log.append(f"event on {stream.name}")

    def synchronize(self) -> None:
        self._device.log.append("host waits for event")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    device = StandInDevice()
    compute = StandInStream(device, "compute")

    @contextlib.contextmanager
    def stream(entered: StandInStream) -> Iterator[None]:
        before, device.current = device.current, entered.name
        yield
        device.current = before

    def copied(buffer: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        device.log.append(f"{'asynchronous' if non_blocking else 'blocking'} copy on {device.current}")
        return copy(buffer, source)

    def clone(value: torch.Tensor, **options: object) -> torch.Tensor:
        device.log.append(f"clone on {device.current}")
        return cloned(value, **options)

    copy, cloned = torch.Tensor.copy_, torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.Tensor, "clone", clone)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, stream: device.log.append(f"memory is read by {stream.name}")
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: compute)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None, *, side=device: StandInStream(side, "side"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: StandInEvent(device))
    return device


@pytest.fixture
def shelf() -> Shelf[torch.Tensor]:
    return BufferPool(1 << 20).shelf(pinned_buffer)


def test_the_side_stream_copies_what_the_compute_stream_has_cloned(
    device: StandInDevice, shelf: Shelf[torch.Tensor]
) -> None:
    copy = DeviceCopier(shelf).start(torch.arange(12.0).view(3, 4))
    assert device.log == [
        "clone on compute",
        "side waits for compute",
        "asynchronous copy on side",
        "event on side",
        "memory is read by side",
    ]
    copy.wait()
    assert device.log[-1] == "host waits for event"


def test_what_is_modified_next_was_copied_before(device: StandInDevice, shelf: Shelf[torch.Tensor]) -> None:
    value = torch.arange(12, dtype=torch.bfloat16).view(3, 4).t()
    expected = value.contiguous().view(torch.uint8).numpy().tobytes()
    copy = DeviceCopier(shelf).start(value)
    value.zero_()
    assert bytes(copy.wait()) == expected


def test_a_lazy_conjugate_is_resolved(device: StandInDevice, shelf: Shelf[torch.Tensor]) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    copy = DeviceCopier(shelf).start(value.conj())
    assert bytes(copy.wait()) == value.conj().resolve_conj().numpy().tobytes()


def test_an_empty_tensor(device: StandInDevice, shelf: Shelf[torch.Tensor]) -> None:
    assert bytes(DeviceCopier(shelf).start(torch.empty(0, 3)).wait()) == b""


def test_a_buffer_is_used_again_when_it_was_released(device: StandInDevice, shelf: Shelf[torch.Tensor]) -> None:
    copier = DeviceCopier(shelf)
    first, second = copier.start(torch.zeros(100)), copier.start(torch.ones(100))
    assert bytes(first.wait()) == bytes(400)
    buffers = [copy.wait().obj for copy in (first, second)]
    assert len({id(buffer) for buffer in buffers}) == 2
    held = shelf.take(400)  # a third one, since both are in use
    first.release()
    third = copier.start(torch.full((100,), 2.0))
    assert third._buffer is first._buffer
    assert third._buffer is not held


def test_no_copy_is_started_while_a_graph_is_captured(device: StandInDevice, shelf: Shelf[torch.Tensor]) -> None:
    device.capturing = True
    with pytest.raises(RuntimeError, match="while a CUDA graph is being captured"):
        DeviceCopier(shelf).start(torch.zeros(3))

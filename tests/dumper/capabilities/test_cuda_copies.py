"""Copies from a CUDA device: what they hold, whatever the model does next, and that nothing waits for them."""

from __future__ import annotations

import pytest
import torch

from dumper.memory.buffers import BufferPool, Shelf
from dumper.memory.device_copies import DeviceCopier, pinned_buffer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.fixture
def shelf() -> Shelf[torch.Tensor]:
    return BufferPool(1 << 30).shelf(pinned_buffer)


def _bytes(value: torch.Tensor) -> bytes:
    return value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_what_is_modified_next_was_copied_before(shelf: Shelf[torch.Tensor], dtype: torch.dtype) -> None:
    copier = DeviceCopier(shelf)
    copies, expected = [], []
    for number in range(20):
        value = torch.full((1 << 20,), float(number % 2), device="cuda").to(dtype).view(1 << 10, 1 << 10).t()
        expected.append(_bytes(value))
        copies.append(copier.start(value))
        value.copy_(torch.zeros_like(value))
        del value  # its memory is handed out again
    assert [bytes(copy.wait()) for copy in copies] == expected


def test_a_value_that_is_still_being_computed(shelf: Shelf[torch.Tensor]) -> None:
    torch.cuda._sleep(200_000_000)
    value = torch.arange(1 << 20, device="cuda").float()
    copy = DeviceCopier(shelf).start(value)
    # The call has returned while the device was still busy.
    assert not copy._done.query()
    assert bytes(copy.wait()) == _bytes(torch.arange(1 << 20).float())


def test_a_value_of_another_stream(shelf: Shelf[torch.Tensor]) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        value = torch.arange(1 << 16, device="cuda")
        copy = DeviceCopier(shelf).start(value)
    assert bytes(copy.wait()) == _bytes(torch.arange(1 << 16))


def test_a_lazy_conjugate_is_resolved(shelf: Shelf[torch.Tensor]) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j], device="cuda")
    assert bytes(DeviceCopier(shelf).start(value.conj()).wait()) == _bytes(value.conj().resolve_conj())


def test_an_empty_tensor(shelf: Shelf[torch.Tensor]) -> None:
    assert bytes(DeviceCopier(shelf).start(torch.empty(0, 3, device="cuda")).wait()) == b""


def test_a_buffer_is_used_again_when_it_was_released(shelf: Shelf[torch.Tensor]) -> None:
    copier = DeviceCopier(shelf)
    first, second = (copier.start(torch.full((100,), float(n), device="cuda")) for n in range(2))
    first.wait()
    second.wait()
    assert first._buffer is not second._buffer
    first.release()
    assert copier.start(torch.full((100,), 2.0, device="cuda"))._buffer is first._buffer


def test_no_copy_is_started_while_a_graph_is_captured(shelf: Shelf[torch.Tensor]) -> None:
    copier = DeviceCopier(shelf)
    value = torch.zeros(3, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        copier.start(value)

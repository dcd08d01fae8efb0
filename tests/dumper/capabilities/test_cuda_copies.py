"""Copies from a CUDA device: what they hold, whatever the model does next, and that nothing waits for them."""

from __future__ import annotations

import pytest
import torch

from dumper.memory.buffers import BufferPool
from dumper.memory.device_slabs import LARGEST_VALUE
from dumper.memory.device_staging import DeviceStager

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.fixture
def stager() -> DeviceStager:
    torch.zeros(1, device="cuda")
    made = DeviceStager.of_this_process(BufferPool(1 << 30), direct_launch=False)
    assert made is not None
    return made


def _bytes(value: torch.Tensor) -> bytes:
    return value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("elements", [1 << 10, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_what_is_modified_next_was_copied_before(stager: DeviceStager, dtype: torch.dtype, elements: int) -> None:
    copies, expected = [], []
    for number in range(20):
        value = torch.full((elements,), float(number % 2), device="cuda").to(dtype).view(1 << 5, -1).t()
        expected.append(_bytes(value))
        copies.append(stager.stage(value))
        value.copy_(torch.zeros_like(value))
        del value  # its memory is handed out again
    assert [bytes(copy.wait()) for copy in copies] == expected


@pytest.mark.parametrize("elements", [1 << 10, 1 << 20])
def test_a_value_that_is_still_being_computed(stager: DeviceStager, elements: int) -> None:
    stager.stage(torch.arange(elements, device="cuda").float()).wait()  # kernels are loaded when they are first used
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    value = torch.arange(elements, device="cuda").float()
    copy = stager.stage(value)
    # The call has returned while the device was still busy.
    assert not torch.cuda.current_stream().query()
    assert bytes(copy.wait()) == _bytes(torch.arange(elements).float())


def test_a_value_of_another_stream(stager: DeviceStager) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        value = torch.arange(1 << 16, device="cuda")
        copy = stager.stage(value)
    assert bytes(copy.wait()) == _bytes(torch.arange(1 << 16))


def test_a_lazy_conjugate_is_resolved(stager: DeviceStager) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j], device="cuda")
    assert bytes(stager.stage(value.conj()).wait()) == _bytes(value.conj().resolve_conj())


def test_an_empty_tensor(stager: DeviceStager) -> None:
    assert bytes(stager.stage(torch.empty(0, 3, device="cuda")).wait()) == b""


def test_large_values_use_their_pinned_memory_again(stager: DeviceStager) -> None:
    addresses = set()
    for number in range(5):
        copy = stager.stage(torch.full((LARGEST_VALUE,), number, device="cuda"))
        addresses.add(copy.wait().obj.ctypes.data)  # type: ignore[attr-defined]
        copy.release()
    assert len(addresses) == 1


def test_no_copy_is_started_while_a_graph_is_captured(stager: DeviceStager) -> None:
    value = torch.zeros(3, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        stager.stage(value)


def test_what_the_writer_does_invalidates_no_capture(stager: DeviceStager) -> None:
    value = torch.arange(1000, device="cuda")
    copies = [stager.stage(value), stager.stage(torch.zeros(LARGEST_VALUE, device="cuda"))]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = value * 2
        assert bytes(copies[0].wait()) == _bytes(torch.arange(1000))
        copies[1].wait()
    graph.replay()
    assert torch.equal(doubled.cpu(), torch.arange(1000) * 2)

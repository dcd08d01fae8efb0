"""Taps that are off cost the device nothing: the same kernels are launched, in the same order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.recordings import CUDA, DEVICE, Recordings, record, synchronize, taps

pytestmark = pytest.mark.cuda


def launched(call: Callable[[], object]) -> list[str]:
    """What runs on the device, in order: kernels, copies and fills."""
    call()
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        synchronize()
    on_device = [event for event in found.events() if str(event.device_type).endswith("CUDA")]
    return [event.name for event in sorted(on_device, key=lambda event: event.time_range.start)]


@pytest.mark.parametrize("way", ["eager", "compiled", "CUDA graph"])
def test_the_same_kernels_are_launched(recordings: Recordings, way: str) -> None:
    assert CUDA
    torch._dynamo.reset()
    recorder = recordings.start(enable=False)
    (tap,) = taps(recorder, "h")
    x = torch.randn(16, 64, device=DEVICE)
    weights = [torch.randn(64, 64, device=DEVICE) for _ in range(4)]

    def plain(h: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            h = torch.relu(h @ weight)
        return h

    def tapped(h: torch.Tensor) -> torch.Tensor:
        recorder.step()
        for layer, weight in enumerate(weights):
            h = torch.relu(h @ weight)
            record(tap, h, "t h", layer_id=layer)
            recorder.dump("h", h, layer_id=layer)
        recorder.end_step()
        return h

    def found(function: Callable[[torch.Tensor], torch.Tensor]) -> list[str]:
        if way == "eager":
            return launched(lambda: function(x))
        if way == "compiled":
            compiled = torch.compile(function, fullgraph=True)
            return launched(lambda: compiled(x))
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function(x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            function(x)
        return launched(graph.replay)

    with torch.no_grad():
        kernels = found(plain)
        assert len(kernels) >= 4
        assert found(tapped) == kernels
        recorder.configure(enable=True)
        assert len(found(tapped)) > len(kernels)

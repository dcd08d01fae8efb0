"""Captures of CUDA graphs: nothing that is recorded breaks one, and what goes into a graph is known."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import torch

from tests.gpu.graph_models import (
    COLUMNS,
    Captured,
    model,
    started,
    step_of,
    wrong_values,
)
from tests.gpu.recordings import (
    DEVICE,
    Recordings,
    is_all,
    slow_writer,
    synchronize,
    taps,
)

pytestmark = pytest.mark.cuda


def test_what_was_captured_while_recording_was_off_is_silent(recordings: Recordings) -> None:
    recorder = recordings.start(enable=False)
    graph = Captured(model(*taps(recorder, "h", "last")), 4)
    recorder.configure(enable=True)
    with recorder.step():
        graph.replay(1)
        recorder.dump("other", graph.x)
    run = recordings.read(recorder, problems=1)  # the graph that is silent
    assert [one.name for one in run.records] == ["other"]
    assert len(run.silent_taps) == 2


def test_a_capture_that_failed_leaves_nothing(recordings: Recordings) -> None:
    recorder, forward = started(recordings)
    failed, x = torch.cuda.CUDAGraph(), torch.zeros(4, COLUMNS, device=DEVICE)

    def breaks() -> None:
        with torch.cuda.graph(failed):
            forward(x)
            raise RuntimeError("the model fails while it is captured")

    with pytest.raises(RuntimeError, match="the model fails"):
        breaks()
    graph = Captured(forward, 4)
    recorder.configure(filter=None)
    with recorder.step():
        graph.replay(1)
    step = step_of(recorder)
    run = recordings.read(recorder)
    assert len(run.records) == 4
    assert not wrong_values(run, {step: (4, 1)})


def test_a_graph_that_is_reset_and_captured_anew_without_taps_is_silent(recordings: Recordings) -> None:
    recorder, forward = started(recordings)
    graph = Captured(forward, 4).graph
    recorder.configure(enable=False)
    graph.reset()
    x = torch.zeros(4, COLUMNS, device=DEVICE)
    with torch.cuda.graph(graph):
        y = x + 1
    recorder.configure(enable=True, filter=None)
    with recorder.step():
        graph.replay()
        recorder.dump("other", y)
    run = recordings.read(recorder, problems=1)  # the graph is silent now
    assert [one.name for one in run.records] == ["other"]


def test_a_graph_that_is_gone_takes_its_buffers_along(recordings: Recordings) -> None:
    import gc

    recorder, forward = started(recordings)
    recorder.dump("first", torch.ones(3, device=DEVICE))  # what is kept for eager values
    recorder.flush()
    Captured(forward, 4)
    gc.collect()
    synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    graph = Captured(forward, 1 << 16)
    assert torch.cuda.memory_allocated() - before > 16 << 20
    del graph
    gc.collect()
    synchronize()
    assert torch.cuda.memory_allocated() - before < 2 << 20


def test_captures_and_replays_in_and_out_of_inference_mode(recordings: Recordings) -> None:
    recorder, forward = started(recordings)
    with torch.inference_mode():
        first = Captured(forward, 8)
    second, third = Captured(forward, 16), Captured(forward, 4)
    recorder.configure(filter=None)
    replays: dict[int, tuple[int, float]] = {}
    for number, graph in enumerate((first, second, third, second, first)):
        with recorder.step(), torch.inference_mode() if number % 2 == 0 else contextlib.nullcontext():
            graph.replay(number)
        replays[step_of(recorder)] = graph.x.shape[0], number
    assert not wrong_values(recordings.read(recorder), replays)


def test_compiled_code_that_is_captured(recordings: Recordings) -> None:
    recorder, forward = started(recordings)
    torch._dynamo.reset()
    compiled = torch.compile(forward)
    compiled(torch.zeros(8, COLUMNS, device=DEVICE))
    graph = Captured(compiled, 8)
    recorder.configure(filter=None)
    replays: dict[int, tuple[int, float]] = {}
    for number in range(4):
        with recorder.step():
            graph.replay(number)
        replays[step_of(recorder)] = 8, number
    run = recordings.read(recorder)
    assert not wrong_values(run, replays)
    assert len(run.records) == 16


@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_no_capture_is_broken_while_values_are_on_their_way(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """In global mode a thread that asks for an event, or for memory, breaks the capture of another."""
    slow_writer(monkeypatch, 0.05)
    recorder = recordings.start()
    forward = model(*taps(recorder, "h", "last"))
    values = [torch.full((1 << 20,), float(number), device=DEVICE) for number in range(40)]
    x, graph = torch.zeros(4, COLUMNS, device=DEVICE), torch.cuda.CUDAGraph()
    recorder.step()
    for number, value in enumerate(values):
        recorder.dump("large", value, n=number)
        recorder.dump("small", value[:5], n=number)
    with torch.cuda.graph(graph, capture_error_mode=mode):
        forward(x)
        time.sleep(0.5)  # a capture of a large model takes longer; the writer goes on meanwhile
        forward(x)
    recorder.flush()
    with recorder.step():
        x.fill_(3)
        graph.replay()
    run = recordings.read(recorder)
    for number in range(40):
        assert is_all(run.select(name="large", n=number)[0], number)
        assert is_all(run.select(name="small", n=number)[0], number)
    assert len(run.select(name="h")) + len(run.select(name="last")) == 8


@pytest.mark.parametrize("mode", ["thread_local", "relaxed", "global"])
def test_another_thread_dumps_during_a_capture(recordings: Recordings, mode: str) -> None:
    recorder = recordings.start()
    value = torch.ones(1 << 16, device=DEVICE)
    recorder.dump("warm", value)
    recorder.flush()
    stop, errors, stream = threading.Event(), [], torch.cuda.Stream()

    def work() -> None:
        with torch.cuda.stream(stream):
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    recorder.dump("beside", value, n=number)
                except Exception as error:
                    errors.append(error)
                time.sleep(0.001)

    thread, graph = threading.Thread(target=work), torch.cuda.CUDAGraph()
    x = torch.zeros(4, COLUMNS, device=DEVICE)
    try:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            thread.start()
            recorder.dump("y", x + 1)
            time.sleep(0.3)
        graph.replay()
    finally:
        stop.set()
        thread.join()
    assert not errors
    names = {one.name for one in recordings.read(recorder).records}
    assert {"beside", "y"} <= names


def test_graphed_callables(recordings: Recordings) -> None:
    torch.manual_seed(0)
    recorder = recordings.start()

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.linear(x))
            recorder.dump("y", y, dims="t h")
            return y * 2

    block = Block().to(DEVICE)
    weight, bias = block.linear.weight.detach().clone(), block.linear.bias.detach().clone()
    sample = torch.randn(8, 32, device=DEVICE, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(block, (sample,))
    wanted = {}
    for _ in range(6):
        recorder.step()
        x = torch.randn(8, 32, device=DEVICE, requires_grad=True)
        graphed(x).sum().backward()
        wanted[step_of(recorder)] = torch.relu(torch.nn.functional.linear(x, weight, bias)).detach().cpu()
        block.zero_grad()
    run = recordings.read(recorder)
    for step, value in wanted.items():
        (found,) = run.select(name="y", step=step)
        torch.testing.assert_close(found.tensor(), value, atol=1e-5, rtol=1e-5)


def test_two_threads_that_capture_at_once(recordings: Recordings) -> None:
    recorder = recordings.start()
    together, graphs = threading.Barrier(2, timeout=30), {}
    errors: list[str] = []

    def work(thread: int) -> None:
        try:
            capture(thread)
        except Exception as error:
            errors.append(f"thread {thread}: {type(error).__name__}: {error}")

    def capture(thread: int) -> None:
        x, graph = torch.full((64, COLUMNS), float(thread), device=DEVICE), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        synchronize()
        torch.cuda.empty_cache()  # so that the other thread's capture has nothing to free while this one is under way
        together.wait()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for number in range(5):
                recorder.dump("y", x + number, thread=thread, number=number)
                time.sleep(0.01)
        graphs[thread] = graph, x

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for thread in range(2):
        with recorder.step():
            graphs[thread][0].replay()
    found = [(one.step, one.tags["thread"], float(one.array()[0, 0])) for one in recordings.read(recorder).records]
    assert found == [(thread, thread, float(thread + number)) for thread in range(2) for number in range(5)]

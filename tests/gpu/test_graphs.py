"""CUDA graphs: every replay is recorded, with its own values, whoever replays, and nothing breaks a capture."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dumper import Run, open_run
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder
from dumper.recording.taps import Tap
from tests.gpu.recordings import (
    DEVICE,
    Recordings,
    in_one_line,
    is_all,
    keep_busy,
    record,
    slow_writer,
    synchronize,
    taps,
)

pytestmark = pytest.mark.cuda

LAYERS = 3
COLUMNS = 16
Forward = Callable[[torch.Tensor], torch.Tensor]
NOTHING = 'name == ""'
"""A filter under which taps are captured, and nothing is recorded."""


def model(h_tap: Tap, last_tap: Tap) -> Forward:
    """A function as the patcher leaves it."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = x
        for layer in range(LAYERS):
            h = h * 2 + layer
            record(h_tap, h, "t h", layer_id=layer)
        record(last_tap, h.t(), "h t", rows=x.shape[0])
        return h

    return forward


def expected(value: float, layer: int) -> float:
    """What the model has after a layer, of an input of ``value``."""
    for number in range(layer + 1):
        value = value * 2 + number
    return value


class Captured:
    """A graph of a function, with its input."""

    def __init__(self, forward: Forward, rows: int, pool: Any = None, **options: Any) -> None:
        with torch.inference_mode(False):
            self.x = torch.zeros(rows, COLUMNS, device=DEVICE)
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            forward(self.x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self.graph, pool=pool, **options):
            self.out = forward(self.x)

    def replay(self, value: float) -> None:
        self.x.fill_(value)
        self.graph.replay()


def started(recordings: Recordings, **settings: Any) -> tuple[Recorder, Forward]:
    """A recorder that lets nothing through yet, and a model with its taps."""
    recorder = recordings.start(filter=NOTHING, **settings)
    return recorder, model(*taps(recorder, "h", "last"))


def wrong_values(run: Run, replays: dict[int, tuple[int, float]]) -> list[object]:
    """What is not as it should be; ``replays``: step to rows and input."""
    wrong: list[object] = []
    for step, (rows, value) in replays.items():
        found = run.select(name="h", step=step)
        if [record.tags["layer_id"] for record in found] != list(range(LAYERS)):
            wrong.append((step, [dict(record.tags) for record in found]))
        for one in found:
            want = expected(value, one.tags["layer_id"])
            if one.shape != (rows, COLUMNS) or not is_all(one, want):
                wrong.append((step, dict(one.tags), one.shape, one.array().reshape(-1)[:2].tolist(), want))
        last = run.select(name="last", step=step)
        if len(last) != 1 or last[0].shape != (COLUMNS, rows) or not is_all(last[0], expected(value, LAYERS - 1)):
            wrong.append((step, "last", [one.shape for one in last]))
    return wrong


def step_of(recorder: Recorder) -> int:
    return int(recorder.state()["step"])


@pytest.mark.parametrize("sizes", [(64, 32, 8, 1), (1, 8, 32, 64)], ids=["large first", "small first"])
def test_replays_of_many_sizes_on_several_streams(recordings: Recordings, sizes: tuple[int, ...]) -> None:
    recorder, forward = started(recordings)
    pool = torch.cuda.graph_pool_handle()
    graphs = {rows: Captured(forward, rows, pool) for rows in sizes}
    recorder.configure(filter=None)
    rng = random.Random(0)
    streams = [torch.cuda.Stream() for _ in range(3)]
    replays: dict[int, tuple[int, float]] = {}
    for number in range(200):
        rows = rng.choice(sizes)
        stream = rng.choice((None, *streams))
        with recorder.step():
            if stream is None:
                graphs[rows].replay(number)
            else:
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    if number % 10 == 0:
                        keep_busy(3)
                    graphs[rows].replay(number)
                torch.cuda.current_stream().wait_stream(stream)
        replays[step_of(recorder)] = rows, number
    run = recordings.read(recorder)
    wrong = wrong_values(run, replays)
    assert not wrong, in_one_line(wrong)
    assert len(run.records) == 200 * 4


@pytest.mark.parametrize("level", ["full", "hash", "stats", "sample(rows=2)"])
def test_two_graphs_in_turn_with_streams_and_pools_of_their_own(recordings: Recordings, level: str) -> None:
    recorder, forward = started(recordings, level=level)
    graphs = Captured(forward, 512), Captured(forward, 256)
    recorder.configure(filter=None)
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    synchronize()
    replays: dict[int, tuple[int, float]] = {}
    replayed = 120 if level == "full" else 20
    for number in range(replayed):
        with recorder.step(), torch.cuda.stream(streams[number % 2]):
            graphs[number % 2].replay(number)
            if number % 30 == 0:
                keep_busy(3)
        replays[step_of(recorder)] = (512, 256)[number % 2], number
    run = recordings.read(recorder)
    assert len(run.records) == replayed * 4
    if level == "full":
        wrong = wrong_values(run, replays)
        assert not wrong, in_one_line(wrong)
    for one in run.select(name="h"):
        rows, value = replays[one.step]
        want = expected(value, one.tags["layer_id"])
        if one.level == "hash":
            assert one.fingerprint == fingerprint_on_cpu(recordings, torch.full((rows, COLUMNS), float(want)))
        elif one.level == "stats":
            assert one.statistics["min"] == one.statistics["max"] == want
        elif one.level != "full":
            assert one.array().shape == (2, COLUMNS)
            assert is_all(one, want)


def fingerprint_on_cpu(recordings: Recordings, value: torch.Tensor) -> str:
    recorder = recordings.start(level="hash")
    recorder.dump("x", value)
    found: str = recordings.read(recorder).records[0].fingerprint
    return found


@pytest.mark.parametrize("policy", ["wait", "drop"])
def test_a_slow_writer_and_a_small_budget(recordings: Recordings, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    slow_writer(monkeypatch, 0.02)
    recorder, forward = started(recordings, memory_budget="1MiB", when_full=policy)
    graphs = Captured(forward, 512), Captured(forward, 256)
    recorder.configure(filter=None)
    replays: dict[int, tuple[int, float]] = {}
    for number in range(60):
        with recorder.step():
            graphs[number % 2].replay(number)
        replays[step_of(recorder)] = (512, 256)[number % 2], number
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert run.losses + len(run.records) == 60 * 4
    for one in run.select(name="h"):
        assert is_all(one, expected(replays[one.step][1], one.tags["layer_id"]))
    if policy == "wait":
        assert not wrong_values(run, replays)


@pytest.mark.parametrize("shared", [False, True], ids=["a graph each", "the same graph"])
def test_threads_that_replay_at_once(recordings: Recordings, shared: bool) -> None:
    """Nothing that a replay leaves is overwritten before it is read, and nothing is torn."""
    recorder, forward = started(recordings)
    first = Captured(forward, 1024)
    graphs = (first, first) if shared else (first, Captured(forward, 1024))
    recorder.configure(filter=None)
    synchronize()
    rounds, errors, lock = 200, [], threading.Lock()

    def work(thread: int) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for number in range(rounds):
                    # Who shares an input keeps others from it; the order of streams is theirs, too.
                    with recorder.ctx(thread=thread), lock if shared else contextlib.nullcontext():
                        graphs[thread].replay(thread * 1000 + number)
                        if shared:
                            torch.cuda.current_stream().synchronize()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    run = recordings.read(recorder)
    arrays = [one.array() for one in run.select(name="h", layer_id=0)]
    assert [array for array in arrays if not bool((array == array.flat[0]).all())] == []
    wanted = {2.0 * (thread * 1000 + number) for thread in range(2) for number in range(rounds)}
    assert {float(array.flat[0]) for array in arrays} == wanted


def test_explicit_steps(recordings: Recordings) -> None:
    recorder = recordings.start()
    info = {"id": "m.step#1:", "name": "", "kind": "step", "target": "m.step", "file": "m.py", "line": 1}
    recorder.install_taps("m", (info,), {})
    graph = Captured(model(*taps(recorder, "h", "last")), 4)
    for number in range(5):
        with recorder.step():
            graph.replay(number)
    graph.graph.replay()  # outside any step
    run = recordings.read(recorder)
    assert not wrong_values(run, {number: (4, number) for number in range(5)})
    assert len(run.records) == 20


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


def test_recording_that_is_switched_off_and_on_again(recordings: Recordings) -> None:
    recorder, forward = started(recordings)
    graph = Captured(forward, 4)
    recorder.configure(filter=None)
    replays: dict[int, tuple[int, float]] = {}
    for number in range(6):
        recorder.configure(enable=number % 2 == 0)
        with recorder.step():
            graph.replay(number)
        if number % 2 == 0:
            replays[step_of(recorder)] = 4, number
    recorder.configure(enable=True)
    run = recordings.read(recorder)
    assert sorted({one.step for one in run.records}) == list(replays)
    assert not wrong_values(run, replays)


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


def test_forked_streams_and_every_kind_of_value(recordings: Recordings) -> None:
    recorder = recordings.start(filter=NOTHING)
    x = torch.zeros(8, COLUMNS, device=DEVICE)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        a = x + 1
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            b = x * 3
            recorder.dump("b", b)
        recorder.dump("a", a)
        current.wait_stream(side)
        recorder.dump("strided", (a + b)[::2, 3:])
        recorder.dump("expanded", a[:, :1].expand(8, 5))
        recorder.dump("conjugated", torch.complex(a, b).conj())
        recorder.dump("negative", torch.complex(a, b).conj().imag)
        recorder.dump("pair", (a, {"b": b}))
        recorder.dump("empty", a[:0])
    recorder.configure(filter=None)
    wanted = {}
    for number in range(20):
        with recorder.step():
            x.fill_(number)
            graph.replay()
        wanted[step_of(recorder)] = {
            "a": number + 1,
            "b": 3 * number,
            "strided": 4 * number + 1,
            "expanded": number + 1,
            "conjugated": complex(number + 1, -3 * number),
            "negative": -3 * number,
            "pair.0": number + 1,
            "pair.1.b": 3 * number,
            "empty": 0,
        }
    run = recordings.read(recorder)
    wrong = []
    for step, values in wanted.items():
        found = {one.name: one for one in run.select(step=step)}
        assert found.keys() == values.keys()
        wrong += [(step, name) for name, value in values.items() if not is_all(found[name], value)]
    assert not wrong, in_one_line(wrong)


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

    def work(thread: int) -> None:
        x, graph = torch.full((64, COLUMNS), float(thread), device=DEVICE), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        synchronize()
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
    for thread in range(2):
        with recorder.step():
            graphs[thread][0].replay()
    found = [(one.step, one.tags["thread"], float(one.array()[0, 0])) for one in recordings.read(recorder).records]
    assert found == [(thread, thread, float(thread + number)) for thread in range(2) for number in range(5)]


def test_padding_a_budget_and_what_is_left_out(recordings: Recordings) -> None:
    recorder = recordings.start(graph_memory=4096)
    x, graph = torch.zeros(16, COLUMNS, device=DEVICE), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(6):
            recorder.dump("h", x + number, dims="t h", number=number)
    spans = tuple(SequenceSpan(f"r{number}", 3, 1) for number in range(5))
    with recorder.step(layout=TokenLayout("decode", spans, rows=5)):
        graph.replay()
    run = recordings.read(recorder, problems=1)
    assert [(one.tags["number"], one.shape, one.graph) for one in run.records] == [
        (number, (5, COLUMNS), {}) for number in range(4)
    ]
    assert [graphs.left_out_values for graphs in run.cuda_graphs] == [2]

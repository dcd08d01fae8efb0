"""Replays of CUDA graphs: every one is recorded, with its own values, whoever replays."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest
import torch

from dumper import open_run
from dumper.layout import SequenceSpan, TokenLayout
from tests.gpu.graph_models import (
    COLUMNS,
    NOTHING,
    Captured,
    expected,
    model,
    started,
    step_of,
    wrong_values,
)
from tests.gpu.recordings import (
    DEVICE,
    Recordings,
    in_one_line,
    is_all,
    keep_busy,
    slow_writer,
    synchronize,
    taps,
)

pytestmark = pytest.mark.cuda


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

"""A stand-in for CUDA graphs: a class that keeps what was captured and runs it again. Real graphs need a GPU
(``tests/gpu``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dumper import open_run
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder


class StandInGraph:
    """``torch.cuda.CUDAGraph`` as far as taps see it."""

    open: int | None = None
    """Number of the capture that the only stream takes part in."""
    captures = 0

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.fails = False

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        StandInGraph.captures += 1
        StandInGraph.open = StandInGraph.captures
        self.work = []

    def capture_end(self) -> None:
        StandInGraph.open = None
        if self.fails:
            raise RuntimeError("capture failed")

    def replay(self) -> None:
        for step in self.work:
            step()

    def reset(self) -> None:
        self.work = []


def capture(recorder: Recorder, *dumps: tuple[str, torch.Tensor, str | None], graph: Any = None, **tags: Any) -> Any:
    """A graph in which these values are dumped; a replay gives ``graph.fill`` of each."""
    graph = graph or torch.cuda.CUDAGraph()
    graph.capture_begin()
    try:
        for name, value, dims in dumps:
            recorder.dump(name, value, dims=dims, **tags)
    finally:
        graph.capture_end()
    return graph


def fill(recorder: Recorder, graph: Any, number: float) -> None:
    """What the next replay of a graph leaves in its taps."""
    assert recorder._graphs is not None
    values = [tap.value for tap in recorder._graphs._graphs[id(graph)].taps]
    graph.work = [lambda value=value: value.fill_(number) for value in values]


def run_of(recorder: Recorder) -> Any:
    path = recorder.settings.run_path
    recorder.close()
    return open_run(path)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def layout(tokens: int, requests: int, start: int = 5, rows: int | None = None) -> TokenLayout:
    counts = [tokens - requests + 1] + [1] * (requests - 1)
    spans = tuple(SequenceSpan(f"r{n}", start, count) for n, count in enumerate(counts))
    rows = rows or tokens
    return TokenLayout("decode", spans, rows=rows, token_ids=np.arange(rows, dtype=np.int64))

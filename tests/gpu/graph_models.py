"""A model with taps, and graphs of it whose replays are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dumper import Run
from dumper.recording.recorder import Recorder
from dumper.recording.taps import Tap
from tests.gpu.recordings import (
    DEVICE,
    Recordings,
    is_all,
    record,
    taps,
)

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

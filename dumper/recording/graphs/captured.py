"""What is known of a graph once it is captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dumper.adapters.protocol import GraphFacts
from dumper.recording.graphs.memory import Cursor, Place
from dumper.recording.taps import Tap
from dumper.values.source import Source

OVER_BUDGET = "over the budget (graph_memory)"
NO_MEMORY = "no memory left on the device"
NOT_CHOSEN = "not chosen (graph_filter)"


@dataclass(frozen=True, eq=False)
class GraphTap:
    """One value in one graph."""

    source: Source
    dims: str | None
    tags: Mapping[str, Any]
    place: Place
    chunk: torch.Tensor
    """The memory that ``place`` is in, all of it."""
    value: torch.Tensor
    """On the device, contiguous, of the dtype and shape that were captured; every replay fills it anew."""


@dataclass(frozen=True)
class LeftOut:
    """A value that ran through a tap during a capture and is not in the graph."""

    name: str
    """Id of the tap, or the name of a value that the program's own code dumps."""
    reason: str


@dataclass(frozen=True, eq=False)
class GraphStep:
    """A step that begins in a graph."""

    tap: str | None
    batch: Mapping[str, Any] | None
    """Its tensors are copies on the device, filled anew by every replay."""
    tags: Mapping[str, Any]


class CapturedGraph:
    """A graph with taps. Compared by identity."""

    __slots__ = ("__weakref__", "counters", "device", "facts", "left_out", "step", "step_ends", "taps")

    def __init__(
        self,
        taps: tuple[GraphTap, ...],
        left_out: tuple[LeftOut, ...],
        counters: tuple[Tap, ...],
        facts: GraphFacts | None,
        step: GraphStep | None = None,
        step_ends: tuple[str | None, ...] = (),
        device: torch.device | None = None,
    ) -> None:
        """``step``: the one that a replay begins; ``step_ends``: the taps that end it there; ``device``: of the memory
        that replays fill, None without any."""
        self.taps = taps
        self.left_out = left_out
        self.counters = counters
        """Which taps fire with a replay, one entry for each value that has one."""
        self.facts = facts
        self.step = step
        self.step_ends = step_ends
        self.device = device

    @property
    def is_empty(self) -> bool:
        """Whether a replay is nothing to know of."""
        return not (self.taps or self.left_out or self.step is not None or self.step_ends)


@dataclass
class OpenCapture:
    """A capture that is under way."""

    facts: GraphFacts | None = None
    began: bool = True
    """Whether its beginning was seen; captures that go past ``torch.cuda.CUDAGraph`` have neither beginning nor end."""
    cursor: Cursor = field(default_factory=Cursor)
    taps: list[GraphTap] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    step: GraphStep | None = None
    step_ends: list[str | None] = field(default_factory=list)

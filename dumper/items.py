"""What the model's thread hands to the writer's thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dumper.adapters.protocol import PendingLayout, Process
from dumper.layout import TokenLayout
from dumper.levels import Level
from dumper.staging import Staged

TagsKey = tuple[tuple[str, Any], ...]


class Submission:
    """One value to be written. Not a dataclass: it is made once per record on the model's thread."""

    __slots__ = ("description", "staged", "step")

    def __init__(self, description: Description, staged: Staged, step: int | None) -> None:
        self.description = description
        self.staged = staged
        self.step = step


@dataclass(frozen=True, eq=False)
class Description:
    """What many records share; made once for each combination and reused."""

    name: str
    tags: TagsKey
    dims: str | None
    dtype: str | None
    shape: tuple[int, ...] | None
    level: Level
    stream: str
    tap: str | None
    recompute: bool


@dataclass(frozen=True)
class BeginStep:
    """A step; its layout may still be on its way from a device."""

    number: int
    layout: TokenLayout | PendingLayout | None
    tags: Mapping[str, Any]


@dataclass(frozen=True)
class InstalledTaps:
    """Taps that the patcher put into a module."""

    module: str
    taps: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where the process stands; known when the first record or step comes."""

    process: Process


@dataclass(frozen=True)
class Barrier:
    """``reached`` is set when all that was handed over before is in the file."""

    reached: threading.Event


@dataclass(frozen=True)
class Stop:
    """The end: complete the file."""


Item = Submission | BeginStep | InstalledTaps | Place | Barrier | Stop

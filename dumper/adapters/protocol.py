"""What an adapter is: all that tensortap knows of one framework, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dumper.layout import TokenLayout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

Parallel = dict[str, tuple[int, int]]
"""Axis name to ``(rank, size)``: where a process stands in the parallel layout."""


@dataclass(frozen=True)
class PendingLayout:
    """A token layout that needs values which are on an accelerator.

    The recorder copies them as it copies what is recorded; nothing waits for the device. The thread that writes calls
    ``build``.
    """

    tensors: Mapping[str, torch.Tensor]
    """What is to be copied, by name, at the moment when the batch is read."""
    build: Callable[[dict[str, npt.NDArray[np.int64]]], TokenLayout]
    """Makes the layout of the same values on the host, flat. To be called once, in any thread, in order of steps."""


@dataclass(frozen=True)
class Process:
    """What the adapters together know about this process."""

    rank: int = 0
    world_size: int = 1
    parallel: Parallel = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution name to version."""
    framework: str | None = None
    """Name of the adapter that knew the rank; None in a process that no framework has initialised."""
    settings: dict[str, str] = field(default_factory=dict)
    """Flags, environment variables and switches of torch that may change numbers."""


@runtime_checkable
class KnowsBackends(Protocol):
    """An adapter that can also tell which kernels its engine chose."""

    def backends(self) -> dict[str, str]:
        """By name, such as ``sglang.attention_backend``; empty while the engine has not chosen."""


class Adapter(Protocol):
    """One framework. Every method is called on the model's thread; what one raises, the registry contains."""

    name: str
    complete_at_start: bool
    """Whether batches are to be read when the step begins; otherwise with its first record, or at its end."""

    def rank(self) -> tuple[int, int] | None:
        """``(rank, world size)`` of this process, None while the framework has not initialised it."""

    def parallel(self) -> Parallel:
        """Axis name to ``(rank, size)``, axes of size 1 included; empty when nothing is known."""

    def versions(self) -> dict[str, str]:
        """Distribution name to version, of the framework and what decides its numbers."""

    def accepts(self, batch: object) -> bool:
        """Whether ``read_batch`` understands this object. Cheap; never raises, never touches a tensor."""

    def read_batch(self, batch: object) -> TokenLayout | PendingLayout | None:
        """The token layout of a pass, None when the batch says nothing about rows.

        Never waits for an accelerator: what lives there comes as a ``PendingLayout``.
        """

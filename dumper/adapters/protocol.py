"""What an adapter is: all that tensortap knows of one framework, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dumper.layout import PADDING_ROW, TokenLayout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

Parallel = dict[str, tuple[int, int]]
"""Axis name to ``(rank, size)``: where a process stands in the parallel layout."""


@dataclass(frozen=True)
class PassSize:
    """How many rows of a forward pass on this rank are no padding that came with a CUDA graph."""

    tokens: int
    requests: int
    shared: bool = False
    """Whether some tensors hold the rows of several data-parallel ranks."""

    @classmethod
    def of(cls, layout: TokenLayout | PendingLayout | None) -> PassSize | None:
        """What a layout says; None where its padding is not at the end, or not known yet."""
        if layout is None or isinstance(layout, PendingLayout):
            return None if layout is None else layout.size
        padded_inside = layout.row_sequence is not None and bool(
            (layout.row_sequence[: layout.real_rows] == PADDING_ROW).any()
        )
        if padded_inside or layout.batch_shape is not None or layout.context_parallel is not None:
            return None
        shared = layout.data_parallel is not None
        # Data-parallel ranks pad their shares themselves, with and without a graph.
        return cls(layout.rows if shared else layout.real_rows, len(layout.sequences), shared)


@dataclass(frozen=True)
class GraphFacts:
    """What an engine knows of a CUDA graph that it captures; None for what it does not."""

    runner: str | None = None
    """Name of the class that captures and replays it."""
    role: str | None = None
    """``target``, or ``draft`` where the model proposes tokens for another (speculative decoding)."""
    tokens: int | None = None
    """For how many rows of the token dimension it is captured."""
    requests: int | None = None
    """For how many requests."""

    def fields(self) -> dict[str, str | int]:
        """What is known, by name."""
        found = {"runner": self.runner, "role": self.role, "tokens": self.tokens, "requests": self.requests}
        return {name: value for name, value in found.items() if value is not None}


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
    size: PassSize | None = None
    """What is known of the size of the pass before that; None: nothing."""


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


@runtime_checkable
class KnowsModel(Protocol):
    """An adapter whose batches tell the model that computes them."""

    def model_facts(self, batch: object) -> dict[str, str]:
        """Numbers of the model's config, ``model.head_dim`` and others, of a batch that it accepts; empty where the
        batch does not tell."""


@runtime_checkable
class KnowsGraphs(Protocol):
    """An adapter that can also tell what its engine is capturing."""

    def graph_facts(self) -> GraphFacts | None:
        """Called while a CUDA graph is captured, below the function that does it; None where the engine does not."""


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

"""What planning needs to know: of one run, and of one side of a pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from msgspec import Struct, field

from comparator.match.bundles import RunIndex
from comparator.match.indexing import parallel_layout
from comparator.options import Side
from comparator.plan.experts import Companions, TokenOrder
from comparator.plan.operations import Coordinates, Shape
from comparator.plan.tokens.interface import RowsClass
from dumper.reading.protocol import Run
from tensortap.dims import Dims, parse_dims


class StepInputs(Struct, frozen=True):
    """What the plan of one step, or of one of several records of a step, is made from."""

    step: int | None
    shapes: tuple[tuple[int, Shape], ...]
    """Rank and shape of every array, by rank; shapes in token order."""
    rows: RowsClass
    has_layout: bool
    sequence_lengths: tuple[int, ...] | None
    """Tokens per sequence of the whole pass, where they are known."""

    @property
    def ranks(self) -> list[int]:
        return [rank for rank, _ in self.shapes]


class SideInputs(Struct, frozen=True):
    """What the plan of one side is made from, beside what is constant for the run: equal inputs give equal plans."""

    dims_text: str | None
    steps: tuple[StepInputs, ...]
    batched: tuple[int, int] | None = None
    """Without dims: the dimensions that are batch and sequence in every pass."""

    @property
    def dims(self) -> Dims | None:
        return None if self.dims_text is None else parse_dims(self.dims_text)


class SideContext(Struct, frozen=True, dict=True):
    """One run, as plans see it."""

    side: Side
    run: Run
    world: Mapping[int, Coordinates]
    axes: frozenset[str]
    """Every axis that a rank of either run recorded: a run of one rank has none, and the dims of both."""
    companions: Companions
    by_rank: bool = False
    """Every bundle is of one rank: arrays are compared as the rank has them."""
    sequence_lengths: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Rows per sequence in each step as the run recorded them beside its tensors; only where rows are joined as they
    lie."""
    classified: dict[object, Mapping[int | None, RowsClass]] = field(default_factory=dict)
    """What the rows of a name and its tags are, per step; filled as bundles are planned."""
    batched: dict[object, tuple[int, int]] = field(default_factory=dict)
    """Names with their tags that have no dims, and which dimensions are batch and sequence in every pass."""
    dims: dict[str, tuple[Dims, TokenOrder | None]] = field(default_factory=dict)
    """Dims that were met before, as they are once arrays are in token order."""
    inputs: dict[object, SideInputs] = field(default_factory=dict)
    """What plans were made from, each once: bundles that are alike share it."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every recorded axis."""
        return {axis: size for coordinates in self.world.values() for axis, (_, size) in coordinates.items()}

    @cached_property
    def shares_rows(self) -> bool:
        """Whether data-parallel attention ranks share the rows of some pass."""
        return any(self.share_rows(step, rank) for step in self.run.steps for rank in self.run.ranks)

    def share_rows(self, step: int | None, rank: int) -> bool:
        """Whether a rank shares the rows of a step with other data-parallel attention ranks."""
        layout = None if step is None else self.run.layout(step, rank)
        return layout is not None and layout.data_parallel is not None and layout.data_parallel.size > 1

    @cached_property
    def shown_coordinates(self) -> Mapping[int, dict[str, str] | None]:
        """Per rank its place on each axis, ``{"tp": "1/4"}``; None where it has none."""
        return {
            rank: {axis: f"{at}/{size}" for axis, (at, size) in coordinates.items()} or None
            for rank, coordinates in self.world.items()
        }

    @classmethod
    def of(
        cls,
        side: Side,
        index: RunIndex,
        *,
        by_rank: bool = False,
        sequence_lengths: Mapping[int, Sequence[int]] | None = None,
        other: RunIndex | None = None,
    ) -> SideContext:
        """What planning needs to know about the run of ``index``, which is compared with ``other``."""
        world = parallel_layout(index.run)
        worlds = (world, {} if other is None else parallel_layout(other.run))
        axes = frozenset(axis for one in worlds for coordinates in one.values() for axis in coordinates)
        return cls(side, index.run, world, axes, Companions(index.entries), by_rank, sequence_lengths or {})

    def has_layout(self, step: int | None, ranks: Iterable[int]) -> bool:
        """Whether the token layout of a step is known on one of these ranks."""
        return step is not None and any(self.run.layout(step, rank) is not None for rank in ranks)

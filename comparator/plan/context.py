"""What planning needs to know about one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from comparator.match.bundles import Entry, RunIndex
from comparator.match.runs import parallel_layout
from comparator.options import Side
from comparator.plan.experts import Companions
from comparator.plan.operations import Coordinates
from comparator.plan.tokens.interface import RowsClass
from dumper.reading.protocol import Run


class SideContext(Struct, frozen=True):
    """One run, as plans see it."""

    side: Side
    run: Run
    world: Mapping[int, Coordinates]
    axes: frozenset[str]
    """Every axis that a rank of the run recorded."""
    companions: Companions
    by_rank: bool = False
    """Every bundle is of one rank: arrays are compared as the rank has them."""
    sequence_lengths: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Rows per sequence in each step as the run recorded them beside its tensors; only where rows are joined as they
    lie."""
    classified: dict[object, Mapping[int | None, RowsClass]] = field(default_factory=dict)
    """What the rows of a name and its tags are, per step; filled as bundles are planned."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every recorded axis."""
        return {axis: size for coordinates in self.world.values() for axis, (_, size) in coordinates.items()}

    @classmethod
    def of(
        cls,
        side: Side,
        index: RunIndex,
        *,
        by_rank: bool = False,
        sequence_lengths: Mapping[int, Sequence[int]] | None = None,
    ) -> SideContext:
        """What planning needs to know about the run of ``index``."""
        world = parallel_layout(index.run)
        axes = frozenset(axis for coordinates in world.values() for axis in coordinates)
        return cls(side, index.run, world, axes, Companions(index.entries), by_rank, sequence_lengths or {})

    def has_layout(self, step: int | None, entries: Sequence[Entry]) -> bool:
        """Whether the token layout of a step is known on a rank of ``entries``."""
        return step is not None and any(self.run.layout(step, entry.rank) is not None for entry in entries)

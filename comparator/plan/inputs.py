"""What the plan of one side is made from: equal inputs give equal plans."""

from __future__ import annotations

from msgspec import Struct

from comparator.plan.operations import Shape
from comparator.plan.tokens.interface import RowsClass
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

    @property
    def dims(self) -> Dims | None:
        return None if self.dims_text is None else parse_dims(self.dims_text)

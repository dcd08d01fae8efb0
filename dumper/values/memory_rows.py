"""Where the bytes of a tensor lie, as rows at equal distances: what one copy can bring together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryRows:
    """``height`` rows of ``width`` bytes that begin ``pitch`` bytes from each other."""

    width: int
    height: int
    pitch: int

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return self.width * self.height

    @property
    def extent(self) -> int:
        """Bytes from the beginning of the first row to the end of the last one."""
        return (self.height - 1) * self.pitch + self.width if self.nbytes else 0


def memory_rows(shape: Sequence[int], strides: Sequence[int], itemsize: int, kept: slice) -> MemoryRows | None:
    """The bytes, in row-major order, of the slices along the first dimension that ``kept`` names; a tensor without
    dimensions is one element. None where they are no rows at equal distances that do not overlap.

    ``strides`` count elements and are not negative; ``kept`` has no negative numbers.
    """
    dimensions = list(zip(shape, strides, strict=True))
    if dimensions:
        (length, stride), *others = dimensions
        chosen = range(length)[kept]
        dimensions = [(len(chosen), stride * chosen.step), *others]
    if any(length == 0 for length, _ in dimensions):
        return MemoryRows(0, 0, 0)
    # From the last dimension: how far elements lie side by side, then how many such rows there are.
    rest = [dimension for dimension in dimensions if dimension[0] != 1]
    width = 1
    while rest and rest[-1][1] == width:
        width *= rest.pop()[0]
    height, pitch = 1, width
    if rest:
        length, pitch = rest.pop()
        height = length
        while rest and rest[-1][1] == pitch * height:
            height *= rest.pop()[0]
    if rest or pitch < width:
        return None
    return MemoryRows(width * itemsize, height, pitch * itemsize)

"""The two matrices of a tap, as they were recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Integer = npt.NDArray[np.int64]


class Matrices(Struct, frozen=True, eq=False):
    """Two matrices of shape ``(rows, channels)``, of any dtype that float32 holds.

    Places where either is not finite count as 0 on both.
    """

    first: Array
    second: Array
    weights: Single | None = None
    """Per channel what both are multiplied by; None for 1."""
    parts: bool = False
    """They are a midpoint and what was added to it, in float32, not a baseline and a target."""
    finite: bool = False
    """All elements are known to be finite."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, channels = self.first.shape
        return rows, channels

    def rows(self, some: slice) -> Matrices:
        """Some of the rows; itself where that is all of them."""
        if some == slice(0, len(self.first)):
            return self
        return replace(self, first=self.first[some], second=self.second[some])

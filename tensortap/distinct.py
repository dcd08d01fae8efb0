"""Distinct values, without what numpy loads for masked arrays."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Kind = TypeVar("Kind", bound=np.generic)


def distinct(values: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """The values of an array, each once, ascending; shape ``(values,)``.

    ``numpy.unique`` of the values alone imports ``numpy.ma``, which takes as long as a small comparison; with counts it
    does not.
    """
    found: npt.NDArray[Kind] = np.unique(values, return_counts=True)[0]
    return found

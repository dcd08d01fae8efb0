"""How the elements of a tensor are distributed, drawn as text."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCKS = " ▁▂▃▄▅▆▇█"
PLAIN = " .:-=+*#@"
"""The same heights for a terminal that knows ASCII alone."""
MOST_BINS = 40
FEWEST_BINS = 8
BESIDE = 24
"""Characters of a line beside the bars."""
MOST_ELEMENTS = 1 << 20
"""Elements that are looked at; of a larger tensor they are a sample, evenly spaced."""
TAIL = 0.1
"""Percent of the elements at each end that are counted in the outermost bin, so that a few large ones do not leave all
others in one bin."""


def drawn_distribution(array: npt.NDArray[Any], width: int) -> str:
    """Two lines: a bar for each bin between the ends of the range; then minimum, maximum, mean, standard deviation, and
    how many elements are zero, NaN or infinite. Empty for complex numbers and for an empty tensor."""
    flat = array.reshape(-1)
    if not flat.size or flat.dtype.kind == "c":
        return ""
    sampled = flat[:: -(-flat.size // MOST_ELEMENTS)]
    values = sampled.astype(np.float64)
    finite = values[np.isfinite(values)]
    said = ", ".join([*_numbers(finite), *_counts(values), *_sample(len(sampled), flat.size)])
    return "\n".join(filter(None, (_bars(finite, min(MOST_BINS, max(FEWEST_BINS, width - BESIDE))), said)))


def _bars(finite: npt.NDArray[np.float64], bins: int) -> str:
    """The line of bars; empty where there are no two numbers."""
    if not finite.size or finite.min() == finite.max():
        return ""
    size = float(np.abs(finite).max())
    units = finite / size  # so that no difference overflows
    low, high = (float(edge) for edge in np.percentile(units, (TAIL, 100 - TAIL)))
    if low == high:
        low, high = float(units.min()), float(units.max())
    places = np.clip((units - low) / (high - low), 0.0, 1.0) * bins
    counts = np.bincount(np.minimum(places.astype(np.int64), bins - 1), minlength=bins)
    glyphs = _glyphs()
    # What holds anything has a height.
    heights = np.ceil(counts / counts.max() * (len(glyphs) - 1)).astype(int)
    bars = "".join(glyphs[height] for height in heights.tolist())
    return f"{low * size:.3g} |{bars}| {high * size:.3g}"


def _numbers(finite: npt.NDArray[np.float64]) -> list[str]:
    if not finite.size:
        return ["no finite element"]
    size = float(np.abs(finite).max()) or 1.0
    units = finite / size
    found = {"min": units.min(), "max": units.max(), "mean": units.mean(), "std": units.std()}
    return [f"{name} {float(value) * size:.3g}" for name, value in found.items()]


def _counts(values: npt.NDArray[np.float64]) -> list[str]:
    kinds = {"zero": values == 0, "NaN": np.isnan(values), "infinite": np.isinf(values)}
    return [f"{int(found.sum())} {kind}" for kind, found in kinds.items() if found.any()]


def _sample(seen: int, size: int) -> list[str]:
    return [] if seen == size else [f"from a sample of {seen} of {size} elements"]


def _glyphs() -> str:
    try:
        BLOCKS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN
    return BLOCKS

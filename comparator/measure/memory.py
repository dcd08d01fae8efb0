"""Whether a pair fits in memory, before the operating system ends the process because it does not."""

from __future__ import annotations

import ctypes
from math import prod
from pathlib import Path

import numpy as np

from comparator.match.bundles import BundlePair

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD`` of ``malloc.h``."""
_MOST_KEPT = (1 << 31) - 1
_SMALL = 1 << 28
"""Bytes that are not worth asking about."""


def check_memory(pair: BundlePair) -> None:
    """Raise MemoryError for a pair whose tensors, once put together, are larger than the memory that is free."""
    needed = sum(
        prod(entry.kept_shape) * _item_size(entry.record.dtype)
        for side in (pair.baseline, pair.target)
        for entry in (side.entries if side is not None else ())
        if entry.is_tensor
    )
    if needed < _SMALL:
        return
    free = free_memory()
    if free is not None and needed > free:
        raise MemoryError(f"{pair.label} takes {needed / 1e9:.3g} GB on both sides, and {free / 1e9:.3g} GB are free")


def keep_freed_memory() -> None:
    """Have the C library keep memory that is let go, up to 2 GiB, for the next large array.

    Given back to the system it would be cleared and mapped anew, page by page, which takes as long as the arithmetic.
    For a process that compares and does nothing else; without effect where the C library is not glibc.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
        adjust(parameter, _MOST_KEPT)


def free_memory() -> int | None:
    """Bytes that can be taken without swapping, by Linux's own estimate; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _item_size(dtype: str | None) -> int:
    import ml_dtypes

    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        found = getattr(ml_dtypes, str(dtype), None)
        return 1 if found is None else np.dtype(found).itemsize

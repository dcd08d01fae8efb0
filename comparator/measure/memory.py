"""Whether a pair fits in memory, before the operating system ends the process because it does not."""

from __future__ import annotations

import ctypes
import functools
import resource
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np

from comparator.align.aligned import can_be_read_in_rows
from comparator.match.bundles import BundlePair
from comparator.options import Options
from comparator.plan.planner import PairPlan
from comparator.rules import Rules
from tensortap.lazy_rows import PIECE

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD`` of ``malloc.h``."""
_MOST_KEPT = (1 << 31) - 1
_SMALL = 1 << 28
"""Bytes that are not worth asking about."""
_OFTEN = 4
"""Times a pair fits in what is left where it is read at once: with what is mapped goes what is computed of it."""
_PER_ROW = 330
"""Bytes that are kept of each row, roughly: its sums and its error."""
_SAMPLES, _PER_SAMPLE = 768, 20
"""Rows of which the analysis looks at all elements together, and bytes that it takes for each element."""
_LARGEST_ELEMENT = 16
_PER_RANKED = 48
"""Bytes that percentiles take for each element."""
_GROUP = Path("/sys/fs/cgroup")


def reads_lazily(plan: PairPlan, pair: BundlePair, options: Options, rules: Rules, together: int = 0) -> bool:
    """Whether the rows of a pair are read some at a time, because all of it takes too much of the memory that may be
    taken (``Options.memory``; without it, what is free). ``together``: bytes of the pairs that are kept with it, its
    own among them.

    Raises MemoryError for a pair that does not fit either way.
    """
    entries = [like for side in (pair.baseline, pair.target) if side is not None for like in side.likes]
    elements = [prod(like.kept_shape) for like in entries]
    if not together and is_small(sum(elements), options):
        return False
    needed = sum(
        count * _item_size(like.record.dtype) for count, like in zip(elements, entries, strict=True) if like.is_tensor
    )
    kept = max(needed, together)
    if _fits(kept, options):
        return False
    allowed = options.memory if options.memory is not None else free_memory()
    if allowed is None:
        return False
    taken = 0 if options.memory is None else memory_taken()
    left = allowed - taken
    if kept * _OFTEN <= left:
        return False
    assert pair.baseline is not None
    assert pair.target is not None
    sides = ((plan.baseline, pair.baseline), (plan.target, pair.target))
    if not all(can_be_read_in_rows(plan, side, bundle, rules) for side, bundle in sides):
        if (needed if options.memory is None else kept) > left:
            raise _too_small(pair, kept, taken, options)
        return False
    parts = [part.shape for step in plan.target.steps for part in step.unshard.parts]
    rows = max(1, sum(shape[0] for shape in parts))
    samples = _PER_SAMPLE * min(rows, _SAMPLES) * prod(parts[0][1:])
    least = _PER_ROW * rows * max(1, kept // needed) + max(PIECE, needed // rows) + samples
    if least > left:
        raise _too_small(pair, least, taken, options)
    return True


def is_small(elements: int, options: Options) -> bool:
    """Whether so many elements of both sides fit in memory whatever they are."""
    return _fits(elements * _LARGEST_ELEMENT, options)


def bytes_together(pairs: Sequence[BundlePair], options: Options) -> int:
    """Bytes that pairs which are kept together take in their files; 0 of a single one, and where they fit whatever is
    kept."""
    if len(pairs) < 2:
        return 0
    sides = [side for side in (pairs[0].baseline, pairs[0].target) if side is not None]
    if _fits(sum(side.entries.places[0].nbytes for side in sides), options):  # the whole runs
        return 0
    found = sum(side.nbytes for pair in pairs for side in (pair.baseline, pair.target) if side is not None)
    return 0 if _fits(found, options) else found


def percentiles_fit(elements: int, options: Options) -> bool:
    """Whether there is memory for the percentiles of a pair, which are made of all its elements in double precision."""
    if options.memory is None:
        return True
    return elements * _PER_RANKED <= max(options.memory - memory_taken(), _SMALL // _OFTEN)


def _fits(size: int, options: Options) -> bool:
    return size < _SMALL and (options.memory is None or size < options.memory // _OFTEN)


def _too_small(pair: BundlePair, least: int, taken: int, options: Options) -> MemoryError:
    if options.memory is None:
        return MemoryError(f"{pair.label} takes {least / 1e9:.3g} GB, and less is free")
    mebibytes = -(-(taken + least) // (1 << 20))
    return MemoryError(
        f"{pair.label} takes {least / 1e6:.3g} MB beside the {taken / 1e6:.3g} MB that are taken; "
        f"{mebibytes} MB for each process (--memory {mebibytes}M --jobs 1) are the least that works"
    )


@functools.cache
def memory_taken() -> int:
    """Bytes of this process that were in memory when it was first asked, before tensors were, its libraries included; 0
    where it is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


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
    """Bytes that can be taken without swapping, by Linux's own estimate and the limit of the control group; None
    elsewhere."""
    found = [one for one in (_of_machine(), _of_group()) if one is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _of_group() -> int | None:
    """What is left of the limit of a control group; files that are only cached do not count, they make room."""
    try:
        limit, now = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (_GROUP / "memory.stat").read_text().splitlines()
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return max(0, limit - now + cached)


def _item_size(dtype: str | None) -> int:
    import ml_dtypes

    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        found = getattr(ml_dtypes, str(dtype), None)
        return 1 if found is None else np.dtype(found).itemsize

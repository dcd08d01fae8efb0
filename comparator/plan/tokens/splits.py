"""How a line of rows is cut over the ranks of an axis.

Each function returns int64 indices into the line: the rows that one rank holds, in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dumper.layout import zigzag_blocks

Indices = npt.NDArray[np.int64]


def block(length: int, parts: int, index: int) -> Indices:
    """Rows of block ``index`` when ``length`` rows are cut into ``parts``: the first ones are one row longer
    when the length does not divide, as ``torch.tensor_split`` and ``numpy.array_split`` do."""
    base, longer = divmod(length, parts)
    start = index * base + min(index, longer)
    return np.arange(start, start + base + (index < longer), dtype=np.int64)


def block_length(length: int, parts: int, index: int) -> int:
    """``len(block(length, parts, index))``."""
    base, longer = divmod(length, parts)
    return base + (index < longer)


def context_parallel(lengths: Sequence[int], ordering: str, size: int, rank: int) -> Indices:
    """Rows of one context-parallel rank when sequences of ``lengths`` lie back to back.

    ``zigzag`` and ``natural`` cut each sequence by itself, ``interleave`` deals the rows of the whole line. Raises
    ValueError for another ordering.
    """
    if ordering == "interleave":
        return np.arange(rank, sum(lengths), size, dtype=np.int64)
    found: list[Indices] = []
    start = 0
    for length in lengths:
        if ordering == "zigzag":
            found.extend(start + block(length, 2 * size, number) for number in zigzag_blocks(rank, size))
        elif ordering == "natural":
            found.append(start + block(length, size, rank))
        else:
            raise ValueError(f"unknown order of context-parallel rows: {ordering!r}")
        start += length
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def context_parallel_batch(shape: tuple[int, int], ordering: str, size: int, rank: int) -> Indices:
    """The same for a padded batch ``(batch, sequence)``: the sequence dimension is cut, padding included."""
    batch, length = shape
    columns = context_parallel([length], ordering, size, rank)
    return (np.arange(batch, dtype=np.int64)[:, None] * length + columns[None, :]).reshape(-1)


def block_batch(shape: tuple[int, int], parts: int, index: int) -> Indices:
    """Rows of a block of the sequence dimension of a padded batch, row-major."""
    batch, length = shape
    columns = block(length, parts, index)
    return (np.arange(batch, dtype=np.int64)[:, None] * length + columns[None, :]).reshape(-1)

"""Which rows of a Transformers batch are tokens, of which sequence, and where each sequence ends.

Written for NumPy arrays and torch tensors alike: only slices, comparisons and ``&``, ``|``, ``~``. So the same rules
serve the token layout, which is made on the host, and the choice of rows of a tensor, made where the tensor is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.layout import PADDING_ROW

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ForwardArguments:
    """What a forward pass was given, on the host; arrays are flat."""

    shape: tuple[int, int]
    """(batch, sequence)."""
    call: int
    """Number of the generation, or of the single pass without a cache, that this pass belongs to."""
    past: int
    """Tokens in the cache before this pass, padding included."""
    training: bool = False
    input_ids: Array | None = None
    attention_mask: Array | None = None
    """Of the cached tokens and of this pass, per sequence; 0 is padding."""
    position_ids: Array | None = None
    cache_position: Array | None = None
    cu_seq_lens_q: Array | None = None
    """Where the sequences of a packed batch begin, and where the last one ends."""
    causal_real: Array | None = None
    """Per row 1 where a mask per query says that the row is a token, 0 where it is padding."""
    causal_past: Array | None = None
    """Per sequence the number of cached tokens that the mask per query lets the pass see."""


@dataclass(frozen=True)
class Rows:
    """Rows in row-major order, each with its sequence (``PADDING_ROW`` for none) and position there."""

    sequence: npt.NDArray[np.int32]
    position: Array
    sequences: int


def rows_of(given: ForwardArguments) -> Rows:
    """The rows of a pass. Raises ValueError when the arguments contradict each other."""
    batch, length = given.shape
    if given.cu_seq_lens_q is not None and batch == 1:
        return _rows_by_ends(given.cu_seq_lens_q, length)
    real, position = _real(given), None
    if given.position_ids is not None and given.position_ids.size in (length, batch * length):
        position = np.broadcast_to(given.position_ids.reshape(-1, length), (batch, length))
    if position is not None and not given.past and is_packed(real, position):
        begins = real & ~goes_on(real, position)
        sequence = np.cumsum(begins.reshape(-1)) - 1
        return Rows(
            np.where(real.reshape(-1), sequence, PADDING_ROW).astype(np.int32),
            np.where(real, position, 0).astype(np.int64).reshape(-1),
            int(begins.sum()),
        )
    sequence = np.repeat(np.arange(batch, dtype=np.int32), length).reshape(batch, length)
    return Rows(
        np.where(real, sequence, PADDING_ROW).astype(np.int32).reshape(-1),
        np.where(real, _positions(given, real, position), 0).astype(np.int64).reshape(-1),
        batch,
    )


def is_packed(real: Any, position: Any) -> bool:
    """Whether positions begin again within a row of the batch, and else count on: several sequences in one row.

    ``real`` and ``position`` have shape (batch, sequence).
    """
    both = real[:, 1:] & real[:, :-1]
    again = both & (position[:, 1:] == 0)
    counted = position[:, 1:] == position[:, :-1] + 1
    first = position[:, :1][real[:, :1]]
    return bool(again.any()) and bool((again | counted | ~both).all()) and bool((first == 0).all())


def goes_on(real: Any, position: Any) -> Any:
    """Per row whether its token follows the one before it in the same sequence, shape (batch, sequence)."""
    follows = real & False
    follows[:, 1:] = real[:, 1:] & real[:, :-1] & (position[:, 1:] != 0)
    return follows


def ends(real: Any, follows: Any) -> Any:
    """Per row whether it is the last token of its sequence in this pass, shape (batch, sequence)."""
    last = real & True
    last[:, :-1] &= ~follows[:, 1:]
    return last


def covered(mask: Any, past: int, length: int) -> tuple[Any, int]:
    """The columns of a 2-D attention mask up to the end of this pass, and how many tokens of the past it leaves out.

    A mask of a static cache is wider than what there is; one of this pass alone does not cover the past. Raises
    ValueError for one that does not even cover this pass.
    """
    columns = mask.shape[1]
    if columns < length:
        raise ValueError(f"an attention mask of {columns} columns for {length} tokens a sequence")
    end = min(columns, past + length)
    return mask[:, :end], past + length - end


def causal_rows(mask: Any, past: Any, shape: tuple[int, int]) -> tuple[Any, Any, Any]:
    """What a mask per query, (batch, heads, queries, keys), says of padding: ``real``, ``past`` and ``plain``.

    A causal mask lets a token see itself and what came before, and nobody see padding. ``past``: tokens in the cache,
    an integer, or a tensor where only the device knows. ``real``: shape (batch, queries), whether a row is a token. The
    second of the result: shape (batch,), cached tokens that the first token sees. ``plain``: whether all of the mask is
    of that kind; else it cannot be told which rows are padding. Nothing waits for a device.
    """
    import torch

    batch, length = shape
    per_query = mask[:, 0].expand(batch, -1, -1)
    if per_query.dtype.is_floating_point:
        per_query = per_query > torch.finfo(per_query.dtype).min / 2
    elif per_query.dtype != torch.bool:
        per_query = per_query != 0
    width = per_query.shape[2]
    column = torch.arange(width, device=mask.device)
    if isinstance(past, torch.Tensor):
        past = past.to(mask.device)
    own = torch.arange(length, device=mask.device) + past
    # An index beyond the mask would be the end of the process on a device.
    place = own.clamp(max=width - 1).expand(batch, -1)
    sees_itself = per_query.gather(2, place[:, :, None])[..., 0] & (own < width)
    # Rows of padding are masked as a whole, or opened as a whole, because softmax needs something to see.
    real = sees_itself & ~(per_query & (column > own[:, None])).any(-1)
    seen = (per_query & real[:, :, None]).any(1)
    plain = (seen.gather(1, place) == real).all()
    return real, (seen & (column < past)).sum(-1), plain


def _real(given: ForwardArguments) -> Any:
    batch, length = given.shape
    if given.attention_mask is not None:
        mask, _ = covered(given.attention_mask.reshape(batch, -1) != 0, given.past, length)
        return mask[:, -length:]
    if given.causal_real is not None:
        return given.causal_real.reshape(batch, length) != 0
    return np.ones((batch, length), dtype=bool)


def _positions(given: ForwardArguments, real: Any, position: Any) -> Any:
    """Of the rows of an ordinary batch. Where there is padding, the tokens before a row are counted."""
    batch, length = given.shape
    if given.attention_mask is not None:
        mask, uncovered = covered(given.attention_mask.reshape(batch, -1) != 0, given.past, length)
        return (mask.cumsum(axis=1) - 1)[:, -length:] + uncovered
    if given.causal_real is not None and given.causal_past is not None and position is None:
        return real.cumsum(axis=1) - 1 + given.causal_past[:, None]
    if position is not None:
        return position
    if given.cache_position is not None and given.cache_position.size == length:
        return np.broadcast_to(given.cache_position, (batch, length))
    return np.broadcast_to(np.arange(given.past, given.past + length), (batch, length))


def _rows_by_ends(cumulative: Array, rows: int) -> Rows:
    """Of a packed batch whose cumulative lengths are given; what comes after the last sequence is padding."""
    number = np.arange(rows, dtype=np.int64)
    starts = cumulative[:-1]
    sequence = np.searchsorted(starts, number, side="right") - 1
    real = number < cumulative[-1]
    return Rows(
        np.where(real, sequence, PADDING_ROW).astype(np.int32),
        np.where(real, number - starts[sequence], 0),
        len(starts),
    )

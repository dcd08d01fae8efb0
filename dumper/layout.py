"""Which row of the token dimension is which token, in one forward pass on one rank.

A token layout answers every alignment question there is: padding, batching order, chunked prefill, cached
prefixes, the data-parallel rank that served a request. Rows get a token identity, ``(sequence, position)``,
and two recordings are joined on identities. ``docs/format.md`` specifies how a layout is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

PADDING_ROW = -1
"""The sequence index of a row that is padding: it has no token identity."""
NO_TOKEN_ID = -1
"""The token id of a row that is no token of the vocabulary, or whose id is not known."""


@dataclass(frozen=True)
class SequenceSpan:
    """What one forward pass computes of one sequence."""

    id: str
    """Request id of the engine; differs between two runs of the same request."""
    start: int
    """Position (0-based) of the first token that this pass computes: the length of what is already cached."""
    count: int
    """Number of tokens of the sequence in this pass (1 in a decode pass)."""


@dataclass(frozen=True)
class DataParallelRows:
    """How the ranks of a data-parallel group share a gathered token buffer in one pass."""

    axis: str
    """Axis name in the recorded parallel layout, ``attn_dp`` for SGLang's data-parallel attention."""
    rank: int
    size: int
    rows: tuple[int, ...]
    """Per data-parallel rank, the rows that it owns in the gathered buffer, padding included."""
    real_rows: tuple[int, ...]
    """Per data-parallel rank, the rows that hold tokens; they come first in the rank's part of the buffer."""
    padding: Literal["max_len", "sum_len"]
    """``max_len``: every rank owns as many rows as the longest; ``sum_len``: back to back."""


@dataclass(frozen=True)
class ContextParallelRows:
    """How the sequences of a pass are split over context-parallel ranks."""

    axis: str
    rank: int
    size: int
    ordering: Literal["zigzag", "natural", "interleave"]
    """``zigzag``: per sequence two of ``2 x size`` blocks, the r-th and the r-th from the end; ``natural``: one
    block per rank; ``interleave``: row i of the pass is on rank ``i % size``."""
    local: bool
    """True when the rows of the layout are this rank's own part; False when they are the whole pass, before
    the split."""


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """The rows of one forward pass on one rank, in the order in which the model sees them.

    Without ``row_sequence`` the rows are the sequences' tokens back to back in the order of ``sequences``,
    followed by padding up to ``rows``. With it, each row names its sequence; then ``row_position`` is needed
    too.
    """

    forward_mode: str
    """``extend``, ``decode``, ``mixed``, ``idle``, ``target_verify``, ``draft_extend``, ``split_prefill``,
    ``prefill`` or ``train``: the engine's own word in lower case."""
    sequences: tuple[SequenceSpan, ...]
    rows: int
    """Rows of the token dimension on this rank, padding included (batch x sequence for padded batches)."""
    token_ids: npt.NDArray[np.int64] | None = None
    """Shape ``(rows,)``: the input token of each row; any value in padding rows."""
    row_sequence: npt.NDArray[np.int32] | None = None
    """Shape ``(rows,)``: index into ``sequences``, ``PADDING_ROW`` for padding."""
    row_position: npt.NDArray[np.int64] | None = None
    """Shape ``(rows,)``: 0-based position of each row's token in its sequence."""
    batch_shape: tuple[int, int] | None = None
    """``(batch, sequence)`` when the model sees a padded batch; rows are then in row-major order."""
    data_parallel: DataParallelRows | None = None
    context_parallel: ContextParallelRows | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """What an adapter knows beyond this; plain values only. ``encoded``: rows of images and sound, which come out of an
    encoder and not of the table of embeddings, as ``[first row, rows, kind, hash of the content]``."""

    @property
    def real_rows(self) -> int:
        """Rows that hold a token."""
        if self.row_sequence is not None:
            return int((self.row_sequence != PADDING_ROW).sum())
        return sum(span.count for span in self.sequences)

    def row_identities(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Per row the index of its sequence (``PADDING_ROW`` for padding) and its position.

        Returns two arrays of shape ``(rows,)``. Raises ValueError when the sequences hold more tokens than
        there are rows.
        """
        if self.row_sequence is not None and self.row_position is not None:
            return self.row_sequence, self.row_position
        if self.real_rows > self.rows:
            raise ValueError(f"the sequences hold {self.real_rows} tokens, but the pass has {self.rows} rows")
        sequence = np.full(self.rows, PADDING_ROW, dtype=np.int32)
        position = np.zeros(self.rows, dtype=np.int64)
        counts = np.array([span.count for span in self.sequences], dtype=np.int64)
        starts = np.array([span.start for span in self.sequences], dtype=np.int64)
        real = int(counts.sum())
        sequence[:real] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # A row's position is its number in the pass, moved by where its sequence starts in both.
        position[:real] = np.arange(real) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return sequence, position


def zigzag_blocks(rank: int, size: int) -> tuple[int, int]:
    """The blocks of a sequence that a context-parallel rank holds in zigzag order, of ``2 x size``: the r-th and the
    r-th from the end. Both together cost every rank the same under causal attention."""
    return rank, 2 * size - 1 - rank

"""The tokens behind the rows of one pass: of a rank's own rows, of gathered buffers, of scattered parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.plan.tokens import splits
from comparator.plan.tokens.drafts import NO_PATH, paths
from comparator.plan.tokens.places import Places
from dumper.layout import PADDING_ROW, DataParallelRows, TokenLayout

UNKNOWN_ROW = -2
"""The sequence of a row that holds a token of a rank whose layout is missing."""

_KEPT_PASSES = 8192

NO_TOKEN_ID = -1
"""The token id of a row whose id was not recorded."""

NOT_ENCODED = 0
UNKNOWN_CONTENT = 1
"""Of a row that comes out of an encoder, where nobody says what was encoded."""


class RowTokens(Struct, frozen=True, eq=False):
    """Which token each row is. All arrays have shape ``(rows,)``."""

    source: npt.NDArray[np.int32]
    """Index of the data coordinate (``Places.coordinates``) whose layout names the sequence."""
    sequence: npt.NDArray[np.int32]
    """Index into ``sequences`` of that layout; ``PADDING_ROW`` or ``UNKNOWN_ROW`` where there is none."""
    position: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]
    """Token id, ``NO_TOKEN_ID`` where it is not known."""
    path: npt.NDArray[np.int64]
    """Of one of several drafts of a position: its branch (``drafts.paths``); ``NO_PATH`` for other rows."""
    encoded: npt.NDArray[np.int64]
    """Of a row that comes out of an encoder (of images, sound) a number of what was encoded; ``NOT_ENCODED`` for those
    of the table of embeddings."""

    def __len__(self) -> int:
        return len(self.sequence)

    def take(self, indices: npt.NDArray[np.int64] | slice) -> RowTokens:
        return RowTokens(
            self.source[indices],
            self.sequence[indices],
            self.position[indices],
            self.token[indices],
            self.path[indices],
            self.encoded[indices],
        )

    def same_as(self, other: RowTokens) -> bool:
        """Whether both are the same tokens in the same order, whatever padding rows say beside."""
        real = self.sequence >= 0
        return (
            np.array_equal(self.sequence, other.sequence)
            and np.array_equal(self.source[real], other.source[real])
            and np.array_equal(self.position[real], other.position[real])
        )


def blank_rows(count: int, sequence: int = PADDING_ROW) -> RowTokens:
    """``count`` rows without an identity."""
    return RowTokens(
        np.zeros(count, np.int32),
        np.full(count, sequence, np.int32),
        np.zeros(count, np.int64),
        np.full(count, NO_TOKEN_ID, np.int64),
        np.full(count, NO_PATH, np.int64),
        np.full(count, NOT_ENCODED, np.int64),
    )


def join_rows(pieces: Sequence[RowTokens]) -> RowTokens:
    if not pieces:
        return blank_rows(0)
    return RowTokens(
        np.concatenate([piece.source for piece in pieces]),
        np.concatenate([piece.sequence for piece in pieces]),
        np.concatenate([piece.position for piece in pieces]),
        np.concatenate([piece.token for piece in pieces]),
        np.concatenate([piece.path for piece in pieces]),
        np.concatenate([piece.encoded for piece in pieces]),
    )


def encoded_rows(layout: TokenLayout) -> npt.NDArray[np.int64]:
    """Per row of a layout a positive number of what an encoder made it of, ``NOT_ENCODED`` elsewhere. What a layout
    says that makes no sense is no such row."""
    found = np.full(layout.rows, NOT_ENCODED, np.int64)
    told: Any = layout.extra.get("encoded")
    for one in told if isinstance(told, list) else ():
        match one:
            case [int(first), int(rows), str(), str(content)] if first >= 0 and rows > 0:
                try:
                    number = int(content, 16)
                except ValueError:
                    number = 0
                found[first : first + rows] = number % (1 << 62) or UNKNOWN_CONTENT
    return found


class RowMeaning(Struct, frozen=True):
    """One thing that the rows of a tensor may be."""

    name: str
    hold: str
    """``own`` or ``gathered``."""
    count: Callable[[int, int], int | None]
    """Rows in a step on a rank; None when the layouts cannot tell."""
    tokens: Callable[[int, int], RowTokens | None]
    """The tokens of these rows."""
    splits_context: bool = False
    """True when context-parallel ranks hold different rows."""
    last_rows: bool = False
    """True when there is one row per sequence, that of its last token in the pass."""


class PassRows:
    """Rows of every pass of one side, under every meaning."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._own: dict[tuple[int, int], RowTokens | None] = {}
        own, gathered = "own", "gathered"
        local = places.local_context
        self.meanings: tuple[RowMeaning, ...] = (
            RowMeaning("own rows", own, self._own_count, self.own, splits_context=local),
            RowMeaning("gathered rows", gathered, self._gathered_count, self.gathered),
            RowMeaning("own part of the context", own, self._context_count, self._context_part, splits_context=True),
            RowMeaning("whole context", own, self._whole_context_count, self._whole_context),
            RowMeaning("own rows, padded", own, self._padded_count, self._own_padded, splits_context=local),
            RowMeaning("own real rows", own, self._real_count, self._own_real, splits_context=local),
            RowMeaning("gathered real rows", gathered, self._gathered_real_count, self._gathered_real),
            RowMeaning("last row of each own sequence", own, self._last_count, self._own_last, local, last_rows=True),
            RowMeaning(
                "last row of each sequence", gathered, self._gathered_last_count, self._gathered_last, last_rows=True
            ),
        )

    # Own rows

    def _own_count(self, step: int, rank: int) -> int | None:
        layout = self._places.layout(step, rank)
        return None if layout is None else layout.rows

    def own(self, step: int, rank: int) -> RowTokens | None:
        """The tokens of the rows of the layout itself; None without a layout."""
        key = (step, rank)
        if key not in self._own:
            if len(self._own) >= _KEPT_PASSES:
                self._own.clear()
            self._own[key] = self._read_own(step, rank)
        return self._own[key]

    def _read_own(self, step: int, rank: int) -> RowTokens | None:
        layout = self._places.layout(step, rank)
        if layout is None:
            return None
        sequence, position = layout.row_identities()
        token = np.full(layout.rows, NO_TOKEN_ID, np.int64)
        if layout.token_ids is not None:
            known = min(layout.rows, len(layout.token_ids))
            token[:known] = layout.token_ids[:known]
        encoded = encoded_rows(layout)
        token[encoded != NOT_ENCODED] = NO_TOKEN_ID
        place = self._places.source_of(rank)
        sequence, position = np.asarray(sequence, np.int32), np.asarray(position, np.int64)
        path = paths(layout, sequence, position, token, seed=step * len(self._places.coordinates) + place)
        return RowTokens(np.full(layout.rows, place, np.int32), sequence, position, token, path, encoded)

    def _padded_count(self, step: int, rank: int) -> int | None:
        layout = self._places.layout(step, rank)
        if layout is None or layout.data_parallel is None:
            return None
        return _share_rows(layout.data_parallel)[layout.data_parallel.rank]

    def _own_padded(self, step: int, rank: int) -> RowTokens | None:
        own, count = self.own(step, rank), self._padded_count(step, rank)
        return None if own is None or count is None else _fitted(own, count)

    def _real_count(self, step: int, rank: int) -> int | None:
        layout = self._places.layout(step, rank)
        return None if layout is None else layout.real_rows

    def _own_real(self, step: int, rank: int) -> RowTokens | None:
        own = self.own(step, rank)
        return None if own is None else own.take(np.flatnonzero(own.sequence != PADDING_ROW))

    def _last_count(self, step: int, rank: int) -> int | None:
        layout = self._places.layout(step, rank)
        return None if layout is None else sum(span.count > 0 for span in layout.sequences)

    def _own_last(self, step: int, rank: int) -> RowTokens | None:
        own = self.own(step, rank)
        if own is None:
            return None
        found, reversed_index = np.unique(own.sequence[::-1], return_index=True)
        return own.take(len(own) - 1 - reversed_index[found >= 0])

    # Context parallelism that splits the rows of the layout inside the model

    def _context_indices(self, layout: TokenLayout | None) -> npt.NDArray[np.int64] | None:
        if layout is None or layout.context_parallel is None or layout.context_parallel.local:
            return None
        how = layout.context_parallel
        if layout.batch_shape is not None:
            return splits.context_parallel_batch(layout.batch_shape, how.ordering, how.size, how.rank)
        lengths = [span.count for span in layout.sequences] or [0]
        lengths[-1] += layout.rows - layout.real_rows
        return splits.context_parallel(lengths, how.ordering, how.size, how.rank)

    def _context_count(self, step: int, rank: int) -> int | None:
        indices = self._context_indices(self._places.layout(step, rank))
        return None if indices is None else len(indices)

    def _context_part(self, step: int, rank: int) -> RowTokens | None:
        indices, own = self._context_indices(self._places.layout(step, rank)), self.own(step, rank)
        return None if indices is None or own is None else own.take(indices)

    # Local layouts whose rows were brought together again

    def _whole_context_count(self, step: int, rank: int) -> int | None:
        if not self._places.local_context:
            return None
        counts = [self._own_count(step, peer) for peer in self._places.context_peers(rank)]
        return None if None in counts else sum(count or 0 for count in counts)

    def _whole_context(self, step: int, rank: int) -> RowTokens | None:
        pieces = [self.own(step, peer) for peer in self._places.context_peers(rank)]
        known = [piece for piece in pieces if piece is not None]
        if len(known) < len(pieces):
            return None
        rows = join_rows(known)
        last = np.where(rows.sequence < 0, np.iinfo(np.int32).max, rows.sequence)
        return rows.take(np.lexsort((rows.position, last)))

    # Gathered buffers

    def _gathered_layout(self, step: int, rank: int) -> tuple[DataParallelRows | None, tuple[int | None, ...]] | None:
        """How the buffer is shared, and per share a rank whose layout describes it."""
        layout = self._places.layout(step, rank)
        if layout is None or not self._places.data_axes:
            return None
        share = layout.data_parallel
        if share is not None:
            return share, tuple(self._places.data_peer(step, rank, share.axis, index) for index in range(share.size))
        return None, self._places.all_data_peers(step, rank)

    def _gathered_count(self, step: int, rank: int) -> int | None:
        found = self._gathered_layout(step, rank)
        if found is None:
            return None
        share, peers = found
        if share is not None:
            return sum(_share_rows(share))
        counts = [None if peer is None else self._own_count(step, peer) for peer in peers]
        return None if None in counts else sum(count or 0 for count in counts)

    def gathered(self, step: int, rank: int) -> RowTokens | None:
        return self._gather(step, rank, self.own, pad=True)

    def _gathered_real_count(self, step: int, rank: int) -> int | None:
        return self._sum_over_shares(step, rank, self._real_count)

    def _gathered_real(self, step: int, rank: int) -> RowTokens | None:
        return self._gather(step, rank, self._own_real, pad=False)

    def _gathered_last_count(self, step: int, rank: int) -> int | None:
        return self._sum_over_shares(step, rank, self._last_count)

    def _gathered_last(self, step: int, rank: int) -> RowTokens | None:
        return self._gather(step, rank, self._own_last, pad=False)

    # Rows that a captured graph pads beyond what the layout says

    def graph_share(self, hold: str, step: int, rank: int, rows: int) -> tuple[int, int] | None:
        """``(by the layout, padded)`` rows of a share of the tensor, when ``rows`` may be padded for a graph."""
        if hold == "own":
            own = self._own_count(step, rank)
            return None if own is None or rows < own else (own, rows)
        found = self._gathered_layout(step, rank)
        share = None if found is None else found[0]
        if share is None or rows % share.size:
            return None
        longest, width = max(share.rows, default=0), rows // share.size
        return None if width < longest else (longest, width)

    def graph_tokens(self, hold: str, step: int, rank: int, rows: int) -> RowTokens | None:
        """The tokens of ``rows`` rows of which each share is padded for a graph."""
        share = self.graph_share(hold, step, rank, rows)
        if share is None:
            return None
        if hold == "own":
            own = self.own(step, rank)
            return None if own is None else _fitted(own, rows)
        return self._gather(step, rank, self.own, pad=True, width=share[1])

    def _sum_over_shares(self, step: int, rank: int, count: Callable[[int, int], int | None]) -> int | None:
        found = self._gathered_layout(step, rank)
        if found is None:
            return None
        share, peers = found
        total = 0
        for index, peer in enumerate(peers):
            rows = None if peer is None else count(step, peer)
            if rows is None and (share is None or share.real_rows[index] > 0):
                return None
            total += rows or 0
        return total

    def _gather(
        self,
        step: int,
        rank: int,
        piece_of: Callable[[int, int], RowTokens | None],
        *,
        pad: bool,
        width: int | None = None,
    ) -> RowTokens | None:
        """The pieces of all data-parallel ranks, padded to their shares of the buffer or to ``width`` each."""
        found = self._gathered_layout(step, rank)
        if found is None:
            return None
        share, peers = found
        pieces = []
        for index, peer in enumerate(peers):
            piece = None if peer is None else piece_of(step, peer)
            if share is None:
                if piece is None:
                    return None
                pieces.append(piece)
                continue
            if piece is None:
                piece = blank_rows(share.real_rows[index], UNKNOWN_ROW)
            rows = _share_rows(share)[index] if width is None else width
            pieces.append(_fitted(piece, rows) if pad else piece)
        return join_rows(pieces)


def _share_rows(share: DataParallelRows) -> tuple[int, ...]:
    """Rows of each data-parallel rank in the gathered buffer."""
    if share.padding == "max_len":
        return (max(share.rows, default=0),) * share.size
    return share.rows


def _fitted(rows: RowTokens, count: int) -> RowTokens:
    """``rows`` cut or padded at the end to ``count``."""
    if len(rows) >= count:
        return rows.take(slice(0, count))
    return join_rows([rows, blank_rows(count - len(rows))])

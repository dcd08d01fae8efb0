"""From what a ForwardBatch says of one pass to its token layout. Pure: neither torch nor SGLang is needed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dumper.layout import (
    NO_TOKEN_ID,
    ContextParallelRows,
    DataParallelRows,
    SequenceSpan,
    TokenLayout,
)

Array = npt.NDArray[np.int64]

_POSITIONS_OF_THEIR_OWN = frozenset({"target_verify", "draft_extend", "draft_extend_v2", "dllm_extend"})
"""Modes whose rows need not be consecutive positions: draft trees, blocks of a diffusion model."""


@dataclass(frozen=True)
class Encoded:
    """Positions of a sequence whose rows come out of an encoder, and not of the table of embeddings."""

    sequence: int
    """Number in the pass."""
    start: int
    stop: int
    kind: str
    """``image``, ``video``, ``audio``."""
    content: int
    """A hash of what was encoded, 0 where there is none."""


@dataclass(frozen=True)
class PassFacts:
    """What a ForwardBatch says of one pass, on the host. Entries of padding have been left in."""

    mode: str
    """The mode in lower case, the original one where data-parallel padding changed it."""
    sequence_count: int
    """Real sequences, padding not counted."""
    rows: int
    """Rows of the token dimension on this rank, padding included."""
    request_ids: tuple[str, ...] | None = None
    slots: Array | None = None
    """Index of each sequence in the engine's request pool; reused by later requests."""
    sequence_lengths: Array | None = None
    """Total tokens of each sequence, this pass included (target verification: without the draft tokens)."""
    extend_starts: Array | None = None
    extend_counts: Array | None = None
    tokens_per_sequence: int = 1
    """Rows of each sequence in decode, target verification and draft extension."""
    speculative: bool = False
    token_ids: Array | None = None
    positions: Array | None = None
    first_children: Array | None = None
    """In a tree of drafts, per sequence and draft: the first of those that follow it; negative for none."""
    next_siblings: Array | None = None
    """The next one that follows the same draft; negative for none."""
    extra: dict[str, Any] = field(default_factory=dict)
    encoded: tuple[Encoded, ...] = ()


@dataclass(frozen=True)
class GatherFacts:
    """How the data-parallel ranks fill the gathered buffer, as this rank knows it."""

    rank: int
    rows: tuple[int, ...]
    counts: tuple[int, ...] | None
    """Per rank the scheduler's count of tokens (of requests when speculating); None when it is not known.

    Older releases (0.5.13 does) round these up to a multiple of attn_tp in place, so that only this rank's own
    count is exact; each rank's own layout says the truth about that rank.
    """
    padding: Literal["max_len", "sum_len"]


class SlotNames:
    """Names sequences by their slot in the request pool, for releases whose batch carries no request ids.

    A slot is reused by later requests. A pass that does not continue where the slot's sequence stood begins a
    new one; every rank of an engine sees the same passes and comes to the same names.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int, int]] = {}

    def name(self, slot: int, start: int, count: int) -> str:
        generation, last_start, last_end = self._seen.get(slot, (-1, 0, -1))
        if not last_start < start <= last_end:
            generation += 1
        self._seen[slot] = (generation, start, start + count)
        return f"slot-{slot}.{generation}"


def build_layout(
    facts: PassFacts,
    gather: GatherFacts | None,
    context_parallel: ContextParallelRows | None,
    slot_names: SlotNames,
) -> TokenLayout:
    """The token layout of a pass.

    Raises ValueError when the facts contradict each other: more tokens than rows, no lengths for a mode.
    """
    starts, counts = _spans(facts)
    real_rows = int(counts.sum())
    if real_rows > facts.rows:
        raise ValueError(f"a {facts.mode} pass of {real_rows} tokens has only {facts.rows} rows")
    names = _names(facts, starts, counts, slot_names)
    spans = tuple(
        SequenceSpan(name, start, count)
        for name, start, count in zip(names, starts.tolist(), counts.tolist(), strict=True)
    )
    token_ids = None if facts.token_ids is None else _padded(facts.token_ids, facts.rows)
    encoded = _encoded_rows(facts.encoded, starts, counts)
    if encoded and token_ids is not None:
        token_ids = token_ids.copy()
        for first, rows, _, _ in encoded:
            # Before the pass it is a hash of the image, behind it the last of the vocabulary, and a token at no time.
            token_ids[first : first + rows] = NO_TOKEN_ID
    layout = TokenLayout(
        forward_mode=facts.mode,
        sequences=spans,
        rows=facts.rows,
        token_ids=token_ids,
        data_parallel=None if gather is None else _data_parallel(gather, real_rows),
        context_parallel=context_parallel,
        extra={**facts.extra, **({"encoded": encoded} if encoded else {})},
    )
    return _with_positions(layout, facts, starts, counts)


def _spans(facts: PassFacts) -> tuple[Array, Array]:
    """Per real sequence the first position and the number of tokens in this pass."""
    n = facts.sequence_count
    if n == 0 or facts.mode == "idle":
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if facts.mode in {"decode", "target_verify"} or facts.extend_counts is None:
        counts = np.full(n, facts.tokens_per_sequence, np.int64)
        if facts.positions is not None and facts.speculative:
            return facts.positions[: int(counts.sum())].reshape(n, -1).min(axis=1), counts
        if facts.sequence_lengths is None or len(facts.sequence_lengths) < n:
            raise ValueError(f"a {facts.mode} pass of {n} sequences says nothing of their lengths")
        before = 0 if facts.mode == "target_verify" else 1
        return facts.sequence_lengths[:n] - before, counts
    counts = facts.extend_counts[:n]
    if facts.extend_starts is not None:
        starts = facts.extend_starts[:n]
    elif facts.sequence_lengths is not None:
        starts = facts.sequence_lengths[:n] - counts
    else:
        raise ValueError(f"a {facts.mode} pass of {n} sequences says nothing of where they start")
    if len(counts) != n or len(starts) != n:
        raise ValueError(f"a {facts.mode} pass of {n} sequences has lengths for {len(counts)}")
    return starts, counts


def _encoded_rows(encoded: tuple[Encoded, ...], starts: Array, counts: Array) -> list[list[Any]]:
    """Of what an encoder fills the rows of this pass: the first one, how many, the kind, the hash in hexadecimal."""
    found: list[list[Any]] = []
    first_rows = np.cumsum(counts) - counts
    for one in encoded:
        if one.sequence >= len(counts):
            continue
        start, count, first = (int(array[one.sequence]) for array in (starts, counts, first_rows))
        begin, end = max(one.start, start), min(one.stop, start + count)
        if begin < end:
            found.append([first + begin - start, end - begin, one.kind, f"{one.content:x}"])
    return found


def _names(facts: PassFacts, starts: Array, counts: Array, slot_names: SlotNames) -> list[str]:
    n = len(counts)
    if facts.request_ids is not None and len(facts.request_ids) >= n:
        return list(facts.request_ids[:n])
    if facts.slots is not None and len(facts.slots) >= n:
        return [
            slot_names.name(int(slot), int(start), int(count))
            for slot, start, count in zip(facts.slots[:n], starts, counts, strict=True)
        ]
    return [f"row-{index}" for index in range(n)]


def _with_positions(layout: TokenLayout, facts: PassFacts, starts: Array, counts: Array) -> TokenLayout:
    """The layout with a position per row where the spans alone would not give it."""
    positions, real_rows = facts.positions, int(counts.sum())
    if positions is None or len(positions) < real_rows or real_rows == 0:
        return layout
    first_rows = np.cumsum(counts) - counts
    expected = np.arange(real_rows) + np.repeat(starts - first_rows, counts)
    if np.array_equal(positions[:real_rows], expected):
        return layout
    if facts.mode in _POSITIONS_OF_THEIR_OWN or facts.speculative:
        sequence, row_position = layout.row_identities()
        row_position[:real_rows] = positions[:real_rows]
        spans = tuple(
            replace(span, start=int(row_position[sequence == index].min()) if span.count else span.start)
            for index, span in enumerate(layout.sequences)
        )
        parents = _parents(facts, len(counts), real_rows)
        extra = layout.extra if parents is None else {**layout.extra, "parents": parents}
        return replace(layout, sequences=spans, row_sequence=sequence, row_position=row_position, extra=extra)
    # The model's positions (of its rotary embedding) need not count tokens; the identity does.
    return replace(layout, extra={**layout.extra, "positions": positions[:real_rows].tolist()})


def _parents(facts: PassFacts, sequences: int, rows: int) -> list[int] | None:
    """Per row of a tree of drafts the row of the draft that it follows, -1 for the first of each sequence."""
    children, siblings = facts.first_children, facts.next_siblings
    if children is None or siblings is None or sequences == 0 or children.size < rows or siblings.size < rows:
        return None
    nodes = rows // sequences
    children, siblings = (tree.reshape(-1)[:rows].reshape(sequences, nodes) for tree in (children, siblings))
    parents = [-1] * rows
    for sequence, (first, following) in enumerate(zip(children.tolist(), siblings.tolist(), strict=True)):
        for node, child in enumerate(first):
            next_child = child
            while node < next_child < nodes:
                parents[sequence * nodes + next_child] = sequence * nodes + node
                # A later row, or none: whatever a buffer that was not filled holds, this ends.
                next_child = following[next_child] if following[next_child] > next_child else -1
    return parents


def _data_parallel(gather: GatherFacts, real_rows: int) -> DataParallelRows:
    counts = list(gather.counts or gather.rows)
    own = counts[gather.rank]
    if gather.counts is not None and own > 0 and real_rows % own == 0:
        # While speculating the scheduler counts requests, and every request has as many rows.
        counts = [count * (real_rows // own) for count in counts]
    counts[gather.rank] = real_rows
    return DataParallelRows(
        axis="attn_dp",
        rank=gather.rank,
        size=len(gather.rows),
        rows=gather.rows,
        real_rows=tuple(min(count, rows) for count, rows in zip(counts, gather.rows, strict=True)),
        padding=gather.padding,
    )


def _padded(values: Array, rows: int) -> Array:
    """``values`` cut or filled with zeros to ``rows``."""
    if len(values) == rows:
        return values
    result = np.zeros(rows, np.int64)
    result[: min(rows, len(values))] = values[:rows]
    return result

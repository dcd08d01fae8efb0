"""Token layouts from what SGLang's dumper records of every batch.

In each pass it dumps ``input_ids`` and ``positions`` (one per row), ``seq_lens`` (per sequence the total length,
this pass included), ``req_pool_indices`` and ``rids``; Megatron's plugin ``input_ids``, ``position_ids`` and
``cu_seqlens_q``. Nothing says where a sequence ends, so the rows are read along with the positions: those of a
sequence count up by one to ``seq_lens - 1``, in a prefill as in a decode pass, with a cached prefix or without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dumper.adapters.sglang_rows import SlotNames
from dumper.layout import ContextParallelRows, DataParallelRows, SequenceSpan, TokenLayout, zigzag_blocks

_DIMS_OF_IDS = "dims of input_ids"
Array = npt.NDArray[np.int64]
Place = Mapping[str, tuple[int, int]]


class _AuxiliaryRecord(Protocol):
    step: int

    @property
    def dumped_name(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def dims(self) -> str | None: ...
    def array(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class _Batch:
    """What was recorded of one pass on one rank."""

    token_ids: Array
    positions: Array
    lengths: Array
    slots: Array | None
    request_ids: Sequence[str] | None


def rank_layouts(records: Sequence[_AuxiliaryRecord], parallel: Place) -> dict[int, TokenLayout]:
    """The layouts of one rank by step, from its auxiliary records."""
    by_step: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.error is None:
            value = record.array() if record.kind == "tensor" else record.value
            of_step = by_step.setdefault(record.step, {})
            of_step.setdefault(record.dumped_name, value)
            if record.dumped_name == "input_ids":
                of_step.setdefault(_DIMS_OF_IDS, record.dims)
    slot_names = SlotNames()
    layouts: dict[int, TokenLayout] = {}
    for step in sorted(by_step):
        found = _layout(by_step[step], parallel, slot_names)
        if found is not None:
            layouts[step] = found
    return layouts


def with_data_parallel(
    layouts: Mapping[int, Mapping[int, TokenLayout]], present: Mapping[int, set[int]], parallel: Mapping[int, Place]
) -> dict[int, dict[int, TokenLayout]]:
    """The layouts of all ranks with the rows of the data-parallel ranks put together.

    ``present`` gives per rank the steps in which it recorded anything: a rank that did, without a batch of its own,
    has no rows while others have some.
    """
    result = {rank: dict(of_rank) for rank, of_rank in layouts.items()}
    sizes = {place["attn_dp"][1] for place in parallel.values() if "attn_dp" in place}
    if len(sizes) != 1 or max(sizes) < 2:
        return result
    (size,) = sizes
    for step in sorted({step for of_rank in layouts.values() for step in of_rank}):
        rows, real = [0] * size, [0] * size
        for rank, of_rank in layouts.items():
            if step in of_rank and "attn_dp" in parallel[rank]:
                at = parallel[rank]["attn_dp"][0]
                rows[at], real[at] = of_rank[step].rows, of_rank[step].real_rows
        for rank, place in parallel.items():
            if "attn_dp" not in place or step not in present.get(rank, set()):
                continue
            own = result[rank].get(step) or TokenLayout("idle", (), 0, token_ids=np.zeros(0, np.int64))
            share = DataParallelRows(
                axis="attn_dp",
                rank=place["attn_dp"][0],
                size=size,
                rows=tuple(rows),
                real_rows=tuple(real),
                padding="max_len" if len(set(rows)) == 1 else "sum_len",
            )
            result[rank][step] = replace(own, data_parallel=share)
    return result


def _layout(found: Mapping[str, Any], parallel: Place, slot_names: SlotNames) -> TokenLayout | None:
    if {"cu_seqlens_q", "qkv_format", "position_ids"} & set(found):
        return _megatron_layout(found, parallel)
    batch = _batch(found)
    return None if batch is None else _sglang_layout(batch, parallel, slot_names)


def _batch(found: Mapping[str, Any]) -> _Batch | None:
    token_ids, positions, lengths = (_integers(found.get(name)) for name in ("input_ids", "positions", "seq_lens"))
    if token_ids is None or positions is None or lengths is None or len(token_ids) != len(positions):
        return None
    rids = found.get("rids")
    request_ids = [str(one) for one in rids] if isinstance(rids, list | tuple) else None
    return _Batch(token_ids, positions, lengths, _integers(found.get("req_pool_indices")), request_ids)


def _integers(value: Any) -> Array | None:
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iu":
        return None
    return value.astype(np.int64)


def _sglang_layout(batch: _Batch, parallel: Place, slot_names: SlotNames) -> TokenLayout | None:
    rows = len(batch.token_ids)
    count = len(batch.lengths) if batch.request_ids is None else min(len(batch.request_ids), len(batch.lengths))
    if batch.request_ids is None and _looks_idle(batch, parallel):
        count = 0
    if count == 0:
        return TokenLayout("idle", (), rows, token_ids=batch.token_ids)
    share = _context_share(batch, count, parallel)
    if share is not None:
        return _split_layout(batch, count, share, slot_names)
    spans = _spans(batch, count, slot_names) or _spans(batch, count, slot_names, lengths_of_pass=True)
    if spans is None:
        return None
    one_each = all(span.count == 1 and span.start > 0 for span in spans)
    return TokenLayout("decode" if one_each else "extend", tuple(spans), rows, token_ids=batch.token_ids)


def _spans(
    batch: _Batch, count: int, slot_names: SlotNames, *, lengths_of_pass: bool = False
) -> list[SequenceSpan] | None:
    """What the pass computes of each sequence; None where positions and lengths do not fit together.

    ``seq_lens`` are total lengths in SGLang; ``lengths_of_pass`` takes them for the rows of this pass alone, as other
    programs that write the same names mean them.
    """
    spans: list[SequenceSpan] = []
    at = 0
    for index in range(count):
        if at >= len(batch.positions):
            return None
        start = int(batch.positions[at])
        length = int(batch.lengths[index]) + (start if lengths_of_pass else 0)
        taken = _rows_of_sequence(batch.positions, at, length)
        if taken is None:
            return None
        spans.append(SequenceSpan(_name(batch, index, start, taken, slot_names), start, taken))
        at += taken
    return spans


def _context_share(batch: _Batch, count: int, parallel: Place) -> tuple[str, int, int] | None:
    """Axis, rank and size of context parallelism, where the rows are this rank's part of every sequence."""
    for axis in ("cp", "attn_cp"):
        at, size = parallel.get(axis, (0, 1))
        lengths = batch.lengths[:count]
        if size > 1 and not (lengths % size).any() and int(lengths.sum()) == size * len(batch.positions):
            return axis, at, size
    return None


def _split_layout(batch: _Batch, count: int, share: tuple[str, int, int], slot_names: SlotNames) -> TokenLayout:
    """The rows of a context-parallel rank: an equal part of each sequence, at the positions that were recorded."""
    axis, at, size = share
    counts = batch.lengths[:count] // size
    sequence = np.repeat(np.arange(count, dtype=np.int32), counts)
    spans = tuple(
        SequenceSpan(_name(batch, index, 0, int(batch.lengths[index]), slot_names), 0, int(counts[index]))
        for index in range(count)
    )
    consecutive = all(
        len(rows) < 2 or bool((np.diff(rows) == 1).all())
        for rows in (batch.positions[sequence == index] for index in range(count))
    )
    return TokenLayout(
        "extend",
        spans,
        len(batch.token_ids),
        token_ids=batch.token_ids,
        row_sequence=sequence,
        row_position=batch.positions,
        context_parallel=ContextParallelRows(axis, at, size, "natural" if consecutive else "zigzag", local=True),
    )


def _rows_of_sequence(positions: Array, at: int, length: int) -> int | None:
    """Rows from ``at`` on whose positions count up to ``length - 1``; None when they do not get there."""
    if at >= len(positions):
        return None
    count = length - int(positions[at])
    end = at + count
    if count < 1 or end > len(positions):
        return None
    expected = np.arange(positions[at], length)
    return count if np.array_equal(positions[at:end], expected) else None


def _looks_idle(batch: _Batch, parallel: Place) -> bool:
    """Whether this is the dummy row that an idle data-parallel rank adds to a decode pass."""
    if parallel.get("attn_dp", (0, 1))[1] < 2:
        return False
    return not batch.token_ids.any() and not batch.positions.any() and bool((batch.lengths <= 1).all())


def _name(batch: _Batch, index: int, start: int, count: int, slot_names: SlotNames) -> str:
    if batch.request_ids is not None:
        return batch.request_ids[index]
    if batch.slots is not None and index < len(batch.slots):
        return slot_names.name(int(batch.slots[index]), start, count)
    return f"row-{index}"


def _megatron_layout(found: Mapping[str, Any], parallel: Place) -> TokenLayout | None:
    """A training batch: padded ``(batch, sequence)``, or packed with cumulative lengths."""
    token_ids = found.get("input_ids")
    if not isinstance(token_ids, np.ndarray) or token_ids.dtype.kind not in "iu":
        return None
    flat = token_ids.astype(np.int64).reshape(-1)
    cumulative = _integers(found.get("cu_seqlens_q"))
    shape = None
    at, size = parallel.get("cp", (0, 1))
    if size > 1 and (cumulative is None or int(cumulative[-1] - cumulative[0]) == size * len(flat)):
        return _megatron_share(found, token_ids, cumulative, at, size)
    if cumulative is not None:
        counts = np.diff(cumulative).tolist()
    elif token_ids.ndim == 2:
        counts = [token_ids.shape[1]] * token_ids.shape[0]
        shape = (int(token_ids.shape[0]), int(token_ids.shape[1]))
    else:
        counts = [len(flat)]
    if sum(counts) > len(flat) or min(counts, default=0) < 0:
        return None
    spans = tuple(SequenceSpan(f"row-{index}", 0, int(count)) for index, count in enumerate(counts))
    return TokenLayout("train", spans, len(flat), token_ids=flat, batch_shape=shape)


def _megatron_share(
    found: Mapping[str, Any], token_ids: npt.NDArray[Any], cumulative: Array | None, at: int, size: int
) -> TokenLayout | None:
    """The rows of a context-parallel rank, which hold its part of every sequence; cumulative lengths are those of the
    whole sequences. None where they cannot be split evenly."""
    flat = token_ids.astype(np.int64).reshape(-1)
    shape = (int(token_ids.shape[0]), int(token_ids.shape[1])) if token_ids.ndim == 2 and cumulative is None else None
    if cumulative is not None:
        lengths = [int(length) for length in np.diff(cumulative)]
    elif shape is not None:
        lengths = [shape[1] * size] * shape[0]
    else:
        lengths = [len(flat) * size]
    position_ids = found.get("position_ids")
    recorded = None
    if isinstance(position_ids, np.ndarray) and position_ids.size == len(flat) and position_ids.dtype.kind in "iu":
        recorded = position_ids.astype(np.int64).reshape(-1)
    zigzag = _is_zigzag(recorded, lengths, size, found.get(_DIMS_OF_IDS))
    if any(length < 0 or length % (2 * size if zigzag else size) for length in lengths):
        return None
    counts = [length // size for length in lengths]
    positions = [_positions_of_share(length, at, size, zigzag) for length in lengths]
    return TokenLayout(
        "train",
        tuple(SequenceSpan(f"row-{index}", 0, count) for index, count in enumerate(counts)),
        len(flat),
        token_ids=flat,
        row_sequence=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        row_position=recorded if recorded is not None else np.concatenate(positions),
        batch_shape=shape,
        context_parallel=ContextParallelRows("cp", at, size, "zigzag" if zigzag else "natural", local=True),
    )


def _is_zigzag(recorded: Array | None, lengths: Sequence[int], size: int, dims: Any) -> bool:
    """Whether a rank holds two blocks of every sequence: by the positions, else the dims of the token ids, else as
    Megatron splits by default."""
    if recorded is None:
        return not (isinstance(dims, str) and "cp" in dims and "zigzag" not in dims)
    ends = np.cumsum([length // size for length in lengths])[:-1]
    return any(bool((np.diff(rows) != 1).any()) for rows in np.split(recorded, ends))


def _positions_of_share(length: int, at: int, size: int, zigzag: bool) -> Array:
    count, blocks = (length // (2 * size), zigzag_blocks(at, size)) if zigzag else (length // size, (at,))
    return np.concatenate([np.arange(block * count, (block + 1) * count) for block in blocks])

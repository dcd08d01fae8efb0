"""Runs of many ranks and records on a small disk: real files with all their frames but those of the records.

Each rank's file has its header, a step frame with a token layout for every pass, an index that names every record, and
holes where the records would be. It opens, is listed and is matched like a recording; no record can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dumper.format import frames
from dumper.format.index import IndexColumns
from dumper.format.layouts import encode_layout
from dumper.format.run_files import segment_path, status_path
from dumper.format.status import StatusBlock
from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout

HIDDEN, HEADS, EXPERTS = 7168, 128, 256
_SLOT = 1 << 12
"""Bytes of the hole in which a record would stand."""
LAYER_TAPS: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("layer_input", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("attn_input", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("attn_pre_o_proj", (HEADS * 16,), "t h[attn_tp] # dp:=attn_dp"),
    ("attn_output", (HIDDEN,), "t h[attn_tp:partial] # dp:=attn_dp"),
    ("post_attn_residual", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("pre_mlp_residual", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("mlp_input", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("router_logits", (EXPERTS,), "t e # dp:=attn_dp attn_tp:replicated"),
    ("topk_ids", (8,), "t k # dp:=attn_dp attn_tp:replicated"),
    ("mlp_output", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
)
"""Name, shape behind the tokens on one rank, dims: what one layer of a mixture of experts dumps."""
OTHER_TAPS: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("embedding", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("final_norm", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
    ("hidden_states", (HIDDEN,), "t h # dp:=attn_dp attn_tp:replicated"),
)
SIZES = (4096, 1024, 512, 192, 128, 64, 32, 16)
"""Tokens of passes on one data-parallel rank: chunks of prompts, and batches of decoding as CUDA graphs pad them."""


@dataclass(frozen=True)
class Sparse:
    """How much a run holds: ``data`` × ``tensor`` ranks of data-parallel attention."""

    data: int
    tensor: int
    layers: int
    steps: int

    @property
    def ranks(self) -> int:
        return self.data * self.tensor

    @property
    def records_per_step(self) -> int:
        return self.layers * len(LAYER_TAPS) + len(OTHER_TAPS)

    @property
    def records(self) -> int:
        return self.ranks * self.steps * self.records_per_step

    def tokens(self, step: int, group: int) -> int:
        """Tokens of a pass on a data-parallel rank: a chunk of a prompt, then seven passes of decoding; each rank has
        other requests."""
        turn = step // 8 + group
        return SIZES[turn % 3] if step % 8 == 0 else SIZES[3 + turn % 5]


def write_sparse_run(path: Path, size: Sparse) -> Path:
    """Write the run; its files have holes, so that a disk holds little more than the indexes."""
    path.mkdir(parents=True)
    for rank in range(size.ranks):
        _write_rank(path, rank, size)
    return path


def _write_rank(path: Path, rank: int, size: Sparse) -> None:
    columns = IndexColumns()
    with segment_path(path, rank, 0).open("wb") as file:

        def add(kind: str, meta: dict[str, Any]) -> int:
            position = file.tell()
            file.write(frames.encode_frame(kind, meta, position))
            return position

        columns.others.append(add("header", _header(rank, size)))
        for step in range(size.steps):
            layout = encode_layout(_layout(rank, step, size))
            columns.steps.append(add("step", {"step": step, "layout": layout}))
        columns.descriptors.extend(_descriptors(rank, size))
        columns.rows.frombytes(_table(file.tell(), rank, size).tobytes())
        file.seek(file.tell() + len(columns) * _SLOT)
        index = file.tell()
        file.write(frames.encode_frame("index", columns.meta(), index, (columns.encode(),)))
        file.write(frames.encode_footer(index))
    status = StatusBlock(status_path(path, rank))
    for name, count in (("submitted", len(columns)), ("written", len(columns)), ("steps", size.steps), ("closed", 1)):
        status.set(name, count)
    status.release()


def _header(rank: int, size: Sparse) -> dict[str, Any]:
    places = {
        "tp": [rank, size.ranks],
        "attn_dp": [rank // size.tensor, size.data],
        "attn_tp": [rank % size.tensor, size.tensor],
    }
    return {
        "version": frames.VERSION,
        "rank": rank,
        "world_size": size.ranks,
        "parallel": places,
        "framework": "sglang",
    }


def _layout(rank: int, step: int, size: Sparse) -> TokenLayout:
    group = rank // size.tensor
    each = tuple(size.tokens(step, one) for one in range(size.data))
    tokens, decoding = each[group], step % 8 != 0
    if decoding:
        spans = [SequenceSpan(f"{group}-{number}", 4096 + step, 1) for number in range(tokens)]
    else:
        spans = [SequenceSpan(f"{group}-{step}", 0, tokens)]
    shared = DataParallelRows("attn_dp", group, size.data, each, each, "sum_len")
    ids = np.arange(tokens, dtype=np.int64) + 1000 * group + step
    return TokenLayout("decode" if decoding else "extend", tuple(spans), tokens, ids, data_parallel=shared)


def _taps(size: Sparse) -> Iterator[tuple[str, tuple[int, ...], str, int | None]]:
    yield (*OTHER_TAPS[0], None)
    for layer in range(size.layers):
        for tap in LAYER_TAPS:
            yield (*tap, layer)
    for tap in OTHER_TAPS[1:]:
        yield (*tap, None)


def _shapes(rank: int, size: Sparse) -> Sequence[int]:
    """The numbers of tokens of a rank's passes, each once, in the order in which they first come."""
    return list(dict.fromkeys(size.tokens(step, rank // size.tensor) for step in range(size.steps)))


def _descriptors(rank: int, size: Sparse) -> Iterator[dict[str, Any]]:
    """What records share, for every shape: each size of a pass has a description of its own."""
    for tokens in _shapes(rank, size):
        for name, shape, dims, layer in _taps(size):
            kind = {"dtype": "int64" if name == "topk_ids" else "bfloat16", "shape": [tokens, *shape], "dims": dims}
            tags = {} if layer is None else {"layer_id": layer}
            yield {"name": name, "tags": tags, **kind, "tap": f"model.DecoderLayer.forward#1:{name}"}


def _table(start: int, rank: int, size: Sparse) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The rows of the index, in the order of its columns."""
    taps, count = size.records_per_step, size.steps * size.records_per_step
    shapes = {tokens: number for number, tokens in enumerate(_shapes(rank, size))}
    order = np.arange(count)
    step = order // taps
    shape = np.array([shapes[size.tokens(number, rank // size.tensor)] for number in range(size.steps)])
    offset = start + order * _SLOT
    table = np.zeros((count, 7), np.int64)
    table[:, 0] = offset
    table[:, 1] = shape[step] * taps + order % taps
    table[:, 2] = step
    table[:, 4] = order
    table[:, 5] = offset + 512
    table[:, 6] = 1024
    return table

"""Runs of one tensor that is larger than the memory that a test may take, on a small disk: files with holes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
import xxhash

from dumper.format import frames
from dumper.format.index import IndexColumns
from dumper.format.layouts import encode_layout
from dumper.format.run_files import segment_path, status_path
from dumper.format.status import StatusBlock
from dumper.layout import SequenceSpan, TokenLayout

CHUNK = 16 << 20
"""Bytes of which the first part holds numbers, and the rest is a hole (zeros)."""


def write_large_run(
    path: Path,
    rows: int,
    channels: int,
    *,
    noise: float = 0.0,
    filled: float = 1 / 16,
    ranks: int = 1,
    steps: int = 1,
    dims: str = "t h",
) -> Path:
    """A run of a record ``hidden`` in each step on each rank (axis ``tp``), of shape ``(rows, channels)`` in bfloat16:
    of every chunk the share ``filled`` is normally distributed, plus ``noise`` of other numbers."""
    path.mkdir(parents=True)
    for rank in range(ranks):
        rng = np.random.default_rng(rank)
        count = min(int(CHUNK * filled) // 2, rows * channels)
        numbers = rng.standard_normal(count) + noise * rng.standard_normal(count)
        _write_rank(path, rank, ranks, steps, (rows, channels), dims, numbers.astype(ml_dtypes.bfloat16).tobytes())
        status = StatusBlock(status_path(path, rank))
        for name, count in (("submitted", steps), ("written", steps), ("steps", steps), ("closed", 1)):
            status.set(name, count)
        status.release()
    return path


def _write_rank(path: Path, rank: int, ranks: int, steps: int, shape: tuple[int, int], dims: str, part: bytes) -> None:
    chunk = part + bytes(CHUNK - len(part))
    columns = IndexColumns()
    size = 2 * shape[0] * shape[1]
    shared = {"name": "hidden", "tags": {}, "dtype": "bfloat16", "shape": list(shape), "dims": dims}
    columns.descriptors.append(shared)
    with segment_path(path, rank, 0).open("wb") as file:
        header = {"version": frames.VERSION, "rank": rank, "world_size": ranks, "parallel": {"tp": [rank, ranks]}}
        columns.others.append(file.tell())
        file.write(frames.encode_frame("header", header, file.tell()))
        for step in range(steps):
            layout = TokenLayout("extend", (SequenceSpan(f"request{step}", 0, shape[0]),), shape[0])
            columns.steps.append(file.tell())
            file.write(frames.encode_frame("step", {"step": step, "layout": encode_layout(layout)}, file.tell()))
            offset = file.tell()
            lengths = [min(frames.LARGEST_PAYLOAD, size - start) for start in range(0, size, frames.LARGEST_PAYLOAD)]
            meta = frames.encode_meta({**shared, "step": step, "occurrence": 0, "order": step})
            file.write(frames.encode_head(b"record", meta, len(lengths)))
            first = 0
            for length in lengths:
                file.write(frames.encode_padding(file.tell(), length))
                first = first or file.tell()
                _write_payload(file, part, chunk, length)
            columns.add((offset, 0, step, 0, step, first, size))
        index = file.tell()
        file.write(frames.encode_frame("index", columns.meta(), index, (columns.encode(),)))
        file.write(frames.encode_footer(index))


def _write_payload(file: BinaryIO, part: bytes, chunk: bytes, length: int) -> None:
    """Chunks with a hole in each, and their checksum."""
    digest, end = xxhash.xxh3_64(), file.tell() + length
    for start in range(0, length, CHUNK):
        file.write(part[: length - start])
        digest.update(chunk[: length - start])
        file.seek(end - length + min(start + CHUNK, length))
    file.write(frames.encode_checksum(digest.intdigest()))

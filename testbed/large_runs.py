"""Runs of one tensor that is larger than the memory that a test may take, on a small disk: files with holes."""

from __future__ import annotations

from pathlib import Path

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


def write_large_run(path: Path, rows: int, channels: int, *, noise: float = 0.0, filled: float = 1 / 16) -> Path:
    """A run of one record ``hidden`` of shape ``(rows, channels)`` in bfloat16, dims ``t h``: of every chunk the share
    ``filled`` is normally distributed, plus ``noise`` of other numbers. A payload is a whole number of chunks."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(int(CHUNK * filled) // 2) + noise * rng.standard_normal(int(CHUNK * filled) // 2)
    part = numbers.astype(ml_dtypes.bfloat16).tobytes()
    chunk = part + bytes(CHUNK - len(part))
    columns = IndexColumns()
    size = 2 * rows * channels
    lengths = [min(frames.LARGEST_PAYLOAD, size - start) for start in range(0, size, frames.LARGEST_PAYLOAD)]
    with segment_path(path, 0, 0).open("wb") as file:
        header = {"version": frames.VERSION, "rank": 0, "world_size": 1, "parallel": {}}
        columns.others.append(file.tell())
        file.write(frames.encode_frame("header", header, file.tell()))
        layout = TokenLayout("extend", (SequenceSpan("request", 0, rows),), rows)
        columns.steps.append(file.tell())
        file.write(frames.encode_frame("step", {"step": 0, "layout": encode_layout(layout)}, file.tell()))
        shared = {"name": "hidden", "tags": {}, "dtype": "bfloat16", "shape": [rows, channels], "dims": "t h"}
        offset = file.tell()
        meta = frames.encode_meta({**shared, "step": 0, "occurrence": 0, "order": 0})
        file.write(frames.encode_head(b"record", meta, len(lengths)))
        first = 0
        for length in lengths:
            file.write(frames.encode_padding(file.tell(), length))
            first = first or file.tell()
            digest, end = xxhash.xxh3_64(), file.tell() + length
            for start in range(0, length, CHUNK):
                file.write(part[: length - start])
                digest.update(chunk[: length - start])
                file.seek(end - length + min(start + CHUNK, length))
            file.write(frames.encode_checksum(digest.intdigest()))
        columns.descriptors.append(shared)
        columns.add((offset, 0, 0, 0, 0, first, size))
        index = file.tell()
        file.write(frames.encode_frame("index", columns.meta(), index, (columns.encode(),)))
        file.write(frames.encode_footer(index))
    status = StatusBlock(status_path(path, 0))
    for name, count in (("submitted", 1), ("written", 1), ("steps", 1), ("closed", 1)):
        status.set(name, count)
    status.release()
    return path

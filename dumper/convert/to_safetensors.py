"""A run written as safetensors, one file per rank and step. torch is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dumper.convert.outcome import ConversionError, Outcome

if TYPE_CHECKING:
    from dumper.reading.protocol import Record, Run
from dumper.values.dtypes import PACKED
from tensortap.progress import Advance


def write_safetensors(run: Run, path: Path, advance: Advance = lambda done: None) -> Outcome:
    """Write the tensors of a run as ``rank-00000/step-000000.safetensors``. Memory holds one step of one rank.

    A tensor is called ``NAME``, then ``.KEY=VALUE`` for each tag, ``.grad`` and ``.N`` for a repeated one; the file's
    metadata holds rank, world size, step and, as JSON under ``dims`` and ``parallel``, dims per tensor and the
    parallel layout. Values that are no tensors, and dtypes that safetensors lacks, are left out.
    ``advance`` takes the number of records that are done.
    """
    outcome = Outcome()
    for rank in run.ranks:
        records = run.select(rank=rank)
        run.expect(records)
        folder = path / f"rank-{rank:05d}"
        for step in sorted({record.step for record in records}, key=lambda at: -1 if at is None else at):
            name = "outside" if step is None else f"step-{step:06d}"
            of_step = [record for record in records if record.step == step]
            _write_file(run, rank, step, of_step, folder / f"{name}.safetensors", outcome)
            advance(len(of_step))
    return outcome


def _write_file(run: Run, rank: int, step: int | None, records: list[Record], file: Path, outcome: Outcome) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError:
        raise ConversionError("writing safetensors needs the package safetensors: pip install safetensors") from None
    arrays: dict[str, Any] = {}
    dims: dict[str, str] = {}
    for record in records:
        key = tensor_key(record)
        try:
            if record.kind != "tensor":
                raise ValueError("it is no tensor")
            if record.level != "full":
                raise ValueError(f"recorded at level {record.level}, which holds no whole value")
            array = np.ascontiguousarray(record.array())
            if array.dtype == np.complex128 or record.dtype == "complex32" or record.dtype in PACKED:
                raise ValueError(f"safetensors has no dtype {record.dtype}")
        except ValueError as error:
            outcome.left_out.append(f"{key} of step {step}, rank {rank}: {error}")
            continue
        arrays[key] = array
        if record.dims is not None:
            dims[key] = record.dims
    if not arrays:
        return
    header = run.headers[rank]
    parallel = {axis: list(place) for axis, place in header.parallel.items()}
    metadata = {
        "format": "tensortap",
        "rank": str(rank),
        "world_size": str(header.world_size),
        "step": "" if step is None else str(step),
        "dims": json.dumps(dims),
        "parallel": json.dumps(parallel),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(arrays, file, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file} cannot be written: {error}") from None
    outcome.written += len(arrays)


def tensor_key(record: Record) -> str:
    """The name of a record's tensor in its file."""
    tags = "".join(f".{key}={value}" for key, value in record.tags.items())
    stream = "" if record.stream == "value" else f".{record.stream}"
    recomputed = ".recompute" if record.recompute else ""
    repeated = f".{record.occurrence}" if record.occurrence else ""
    return f"{record.name}{tags}{stream}{recomputed}{repeated}"

"""SGLang's ``.pt`` dumps written as a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dumper.adapters.protocol import Process
from dumper.convert.outcome import Outcome
from dumper.format.run_files import status_path
from dumper.format.status import StatusBlock
from dumper.readers.sglang.dump import SGLangDump, SGLangRecord
from dumper.readers.sglang.pt_files import OWN_KEYS
from dumper.reading.named_files import CONVERTED
from dumper.rules.levels import FULL
from dumper.settings import Settings
from dumper.values.plain import UnrecordableError, encode_value
from dumper.values.source import Source
from dumper.writing.items import BeginStep, Description, Item, Stop, Submission
from dumper.writing.rank_stream import RankStream
from dumper.writing.run_id import join_run
from tensortap.progress import Advance

_TOGETHER = 1 << 20
"""Bytes of values that are written together, which saves calls for small ones."""
_PLAIN = (str, int, float, bool, type(None))


def write_run(dump: SGLangDump, path: Path, advance: Advance = lambda done: None) -> Outcome:
    """Write a dump as a run at ``path``, with the token layouts that its batches give.

    Memory holds one large tensor, or a megabyte of small ones.

    ``advance`` takes the number of records that are done.
    """
    outcome = Outcome()
    run_id = join_run(path, Settings().file_mode)
    for rank in dump.ranks:
        _write_rank(dump, rank, path, outcome, run_id, advance)
    return outcome


def _write_rank(dump: SGLangDump, rank: int, path: Path, outcome: Outcome, run_id: str, advance: Advance) -> None:
    header = dump.headers[rank]
    settings = Settings(enable=True, dir=str(path.parent), run=path.name)
    process = Process(
        rank,
        header.world_size,
        dict(header.parallel),
        {**header.versions, CONVERTED: "1"},
        header.framework,
        dict(header.settings),
    )
    status = StatusBlock(status_path(path, rank), settings.file_mode, run_id)
    encoder = RankStream(settings, process, status, lambda: {"fired": {}}, run_id, hashes_beside=False)
    last: int | None = None
    waiting: list[Item] = []
    waiting_bytes = 0
    records = (record for record in dump.records if record.rank == rank)
    for record in sorted(records, key=lambda one: one.dump_index):
        # A gradient comes later than the step it belongs to.
        if last is None or record.step > last:
            last = record.step
            waiting.append(BeginStep(record.step, dump.layout(record.step, rank), {}))
        item = _submission(record, outcome)
        if item is not None:
            status.add("submitted")
            waiting.append(item)
            waiting_bytes += len(item.data) if isinstance(item.data, bytes | memoryview) else 0
        if waiting_bytes >= _TOGETHER:
            encoder.write(waiting)
            waiting, waiting_bytes = [], 0
        advance(1)
    encoder.write([*waiting, Stop()])
    outcome.written += status["written"]


def _submission(record: SGLangRecord, outcome: Outcome) -> Submission | None:
    # Reads the file once, with the tensor that is taken below.
    if not record.is_intact():
        outcome.left_out.append(record.error or f"{record.filename}: it changed while it was read")
        return None
    try:
        data: Any
        if record.kind == "tensor":
            array = np.ascontiguousarray(record.array())
            data = memoryview(array.reshape(-1).view(np.uint8).data) if array.nbytes else b""
        else:
            data = encode_value(record.value)
    except (UnrecordableError, ValueError) as error:
        outcome.left_out.append(f"{record.filename}: {error}")
        return None
    description = Description(
        source=Source.of(record.name, stream=record.stream),
        tags=tuple(_tags(record).items()),
        dims=record.dims,
        dtype=record.dtype,
        shape=record.shape,
        level=FULL,
        recompute=record.recompute,
    )
    return Submission(description, data, record.step, 0)


def _tags(record: SGLangRecord) -> Mapping[str, Any]:
    """Tags with the types that they were dumped with, where the file says."""
    meta = record.facts.meta
    typed: dict[str, Any] = {}
    for key, text in record.parts.items():
        if key in OWN_KEYS:
            continue
        value = meta.get(key, record.tags[key])
        typed[key] = value if isinstance(value, _PLAIN) else text
    return typed

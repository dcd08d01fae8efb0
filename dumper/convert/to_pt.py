"""A run written as ``.pt`` files that SGLang's comparator reads. torch is imported for what no plain array holds."""

from __future__ import annotations

import ast
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dumper.convert.outcome import Outcome
from dumper.convert.pt_archive import PlainTensor, holds, save
from dumper.format.regular_files import mode_within
from dumper.layout import PADDING_ROW, TokenLayout
from dumper.readers.sglang import pt_files
from dumper.reading.named_files import AUXILIARY_NAMES
from dumper.values.dtypes import PACKED
from tensortap.progress import Advance
from tensortap.thread_pool import ThreadPool

if TYPE_CHECKING:
    from dumper.reading.protocol import Header, Record, Run

_LARGE = 1 << 20
"""Bytes of a value from which it is written by a thread of its own, and its mapped memory is given back."""
_AT_ONCE = 2
"""Large values that are written at the same time: to copy bytes into files takes most of the time, and more threads
would wait for the memory."""
_OUTSIDE = -1
"""The step that stands for none: SGLang's comparator leaves it out unless ``--start-step`` is below zero."""
_ERRORS = (OSError, ValueError, TypeError, AttributeError)
"""Of a record that cannot be written; it is left out."""
_RESERVED = frozenset({"value", "meta", *pt_files.OWN_KEYS})


def write_pt_files(run: Run, path: Path, advance: Advance = lambda done: None) -> Outcome:
    """Write a run as SGLang's dumper would have, one file per record.

    The token layout of each step becomes ``input_ids``, ``positions``, ``seq_lens`` and ``rids``. Records that hold
    less than the whole value are left out. ``advance`` takes the number of records that are done.
    """
    outcome = Outcome()
    with ThreadPool(_AT_ONCE) as threads:
        for rank in run.ranks:
            _RankWriter(run, rank, path, outcome, threads).write(advance)
    return outcome


class _RankWriter:
    def __init__(self, run: Run, rank: int, path: Path, outcome: Outcome, threads: ThreadPool) -> None:
        self._run = run
        self._rank = rank
        self._path = path
        self._outcome = outcome
        self._place = _place(run.headers[rank])
        self._mode = mode_within(path)
        self._index = 0
        self._threads = threads
        self._under_way: deque[tuple[Record, Future[None]]] = deque()

    def write(self, advance: Advance) -> None:
        begun: set[int] = set()
        records = self._run.select(rank=self._rank)
        self._run.expect(records)
        own = {(record.step, record.name) for record in records}
        for record in records:
            if record.step is not None and record.step not in begun:
                begun.add(record.step)
                layout = self._run.layout(record.step, self._rank)
                for name, value in _auxiliary(layout).items() if layout is not None else ():
                    if (record.step, name) not in own:
                        path, meta = self._named(record.step, name, {}, None, "disabled")
                        self._save(path, value, meta)
            self._write_record(record)
            advance(1)
        self._wait_for(0)

    def _write_record(self, record: Record) -> None:
        if record.level != "full":
            self._leave_out(record, f"recorded at level {record.level}, which holds no whole value")
            return
        if record.dtype in PACKED:
            self._leave_out(record, f"torch.save knows no {record.dtype}")
            return
        name = f"grad__{record.name}" if record.stream == "grad" else record.name
        status = "recompute" if record.recompute else "disabled"
        tags = {key: value for key, value in record.tags.items() if key not in _RESERVED}
        step = _OUTSIDE if record.step is None else record.step
        if not record.is_intact():
            self._leave_out(record, "its bytes do not match their checksum")
            return
        is_large = record.kind == "tensor" and record.nbytes >= _LARGE
        if is_large:
            self._wait_for(_AT_ONCE - 1)
        try:
            value = _tensor(record) if record.kind == "tensor" else _portable(record.value)
            path, meta = self._named(step, name, tags, record.dims, status)
            if is_large:
                saving = self._threads.submit(_save_large, record, path, value, meta, self._mode)
                self._under_way.append((record, saving))
                self._index += 1
            else:
                self._save(path, value, meta)
        except _ERRORS as error:
            self._leave_out(record, str(error))

    def _wait_for(self, left: int) -> None:
        """Wait until so many large values are under way."""
        while len(self._under_way) > left:
            record, saving = self._under_way.popleft()
            try:
                saving.result()
                self._outcome.written += 1
            except _ERRORS as error:
                self._leave_out(record, str(error))

    def _named(
        self, step: int, name: str, tags: dict[str, Any], dims: str | None, status: str
    ) -> tuple[Path, dict[str, Any]]:
        """The file of a value, and what it holds beside it. Raises ValueError for what no file name can hold."""
        parts = {
            "step": step,
            "rank": self._rank,
            "dump_index": self._index + 1,
            "name": name,
            "recompute_status": status,
            **tags,
        }
        meta = {**parts, **self._place, **({} if dims is None else {"dims": dims})}
        return self._path / pt_files.build_file_name(parts), meta

    def _save(self, path: Path, value: Any, meta: dict[str, Any]) -> None:
        _save(path, value, meta, self._mode)
        self._index += 1
        self._outcome.written += 1

    def _leave_out(self, record: Record, why: str) -> None:
        self._outcome.left_out.append(f"{record.name} of step {record.step}, rank {self._rank}: {why}")


def _save(path: Path, value: Any, meta: dict[str, Any], mode: int) -> None:
    if pt_files.is_tensor(value):
        import torch

        torch.save({"value": value, "meta": meta}, path)
    else:
        save(path, value, meta, mode)


def _save_large(record: Record, path: Path, value: Any, meta: dict[str, Any], mode: int) -> None:
    try:
        _save(path, value, meta, mode)
    finally:
        record.let_go()  # what is mapped of it would count until the end


def _place(header: Header) -> dict[str, Any]:
    info: dict[str, int] = {}
    for axis, (at, size) in header.parallel.items():
        info |= {f"{axis}_rank": at, f"{axis}_size": size}
    key = "megatron_parallel_info" if header.framework == "megatron" else "sglang_parallel_info"
    return {"world_rank": header.rank, "world_size": header.world_size, key: info}


def _auxiliary(layout: TokenLayout) -> dict[str, Any]:
    """What SGLang's dumper records of a batch, from a token layout; total lengths, as its ``seq_lens`` are."""
    if layout.batch_shape is not None or layout.row_sequence is not None or layout.token_ids is None:
        return {}
    sequence, position = layout.row_identities()
    rows = np.where(sequence == PADDING_ROW, 0, position)
    lengths = [span.start + span.count for span in layout.sequences]
    found = {
        "input_ids": PlainTensor("int64", np.array(layout.token_ids, np.int64)),
        "positions": PlainTensor("int64", rows.astype(np.int64)),
        "seq_lens": PlainTensor("int64", np.array(lengths, np.int64)),
        "rids": [span.id for span in layout.sequences],
    }
    assert set(found) <= AUXILIARY_NAMES
    return found


def _tensor(record: Record) -> Any:
    """The tensor of a record, one of torch's where the file is to be made by torch."""
    if not holds(record.dtype, record.nbytes):
        return record.tensor()
    return PlainTensor(record.dtype or "", record.array())


def _portable(value: Any) -> Any:
    """A value that ``weights_only`` loading accepts. Raises ValueError for any other."""
    try:
        ast.literal_eval(repr(value))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if not isinstance(value, float):
            raise ValueError(f"a {type(value).__name__} like this cannot go into a .pt file") from None
    return value

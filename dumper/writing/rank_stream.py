"""Items to frames to the rank's file, on the writer's thread, with every failure counted instead of raised."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dumper.adapters.protocol import Process
from dumper.format import frames
from dumper.format.index import COLUMNS
from dumper.format.layouts import encode_layout
from dumper.format.regular_files import make_folders
from dumper.format.run_files import segment_path
from dumper.format.status import StatusBlock
from dumper.log_once import LogOnce, log
from dumper.memory.cuda_runtime import DeviceError
from dumper.memory.staging import Staged
from dumper.settings import Settings
from dumper.writing.holding import Holding
from dumper.writing.items import (
    AddedAxes,
    BeginStep,
    Description,
    InstalledTaps,
    Item,
    ManyValues,
    SmallRecord,
    StagedLayout,
    Stop,
    Submission,
)
from dumper.writing.rank_file import ClaimedError, RankFile
from dumper.writing.record_encoder import EncodedBatch, RecordEncoder, fingerprint_of

LARGE = 256 << 10
"""Bytes; payloads from here on are written by themselves, smaller ones in batches."""
_CHECK_SECONDS = 0.5
_RETRY_SECONDS = 1.0
Coverage = Callable[[], dict[str, Any]]


class RankStream:
    """Writes one rank's stream. All but ``claim`` is for the writer's thread; no method raises because of the disk."""

    def __init__(
        self,
        settings: Settings,
        process: Process,
        status: StatusBlock,
        coverage: Coverage,
        run_id: str,
        forked_from: Sequence[int] = (),
        *,
        hashes_beside: bool = True,
    ) -> None:
        """``coverage`` tells what taps did, for the end; ``forked_from``: processes that this one was forked from;
        ``hashes_beside`` of ``RankFile``."""
        self._hashes_beside = hashes_beside
        self._forked_from = forked_from
        self._run_id = run_id
        self._settings = settings
        self._process = process
        self._status = status
        self._coverage = coverage
        self._file: RankFile | None = None
        self._segment = 0
        self._claimed = False
        self._finished = False
        """What still comes then was handed over while the process ended."""
        self._log_once = LogOnce()
        self._retry_at = 0.0
        self._check_at = 0.0
        self._records = RecordEncoder(settings.compression)
        self._batch: EncodedBatch | None = None
        """What is encoded, and written in one call with what follows: each write, for which the interpreter lock is let
        go of, may have the model's thread wait for that lock."""
        self._preamble: list[tuple[str, dict[str, Any]]] = []
        self._holding = Holding(settings, self._lose) if settings.on_nan is not None else None

    def claim(self) -> None:
        """Make the rank's file, so that it belongs to this process and not to one that is forked from it."""
        self._open()

    def write(self, batch: Sequence[Item]) -> None:
        """Write a batch of items in order."""
        if self._holding is not None:
            batch = self._holding.release(batch)
        small: list[SmallRecord] = []
        staged: list[Staged] = []
        try:
            for item in batch:
                if isinstance(item, list):
                    small.extend(item)
                elif isinstance(item, tuple):
                    small.append(item)
                elif isinstance(item, Submission):
                    self._collect(item, small, staged)
                elif isinstance(item, ManyValues):
                    self._collect_many(item, small, staged)
                elif isinstance(item, BeginStep):
                    self._encode(small)
                    self._encode_step(item)
                else:
                    self._flush(small, staged)
                    self._write_other(item)
        finally:
            self._flush(small, staged)
            if self._holding is not None:
                self._status.set("held_back", self._holding.held_back)

    def _arrived(self, data: bytes | memoryview | Staged, staged: list[Staged], values: int, what: str) -> Any:
        """The bytes of what was handed over, to be released with ``staged``; None when they will not come, and its
        values are counted as lost."""
        if isinstance(data, bytes | memoryview):
            return data
        try:
            arrived = data.wait()
        except Exception as error:
            data.release()
            self._lose(values, "lost_encoding", f"{what}: the copy failed: {error}")
            return None
        staged.append(data)
        return arrived

    def _collect(self, item: Submission, small: list[SmallRecord], staged: list[Staged]) -> None:
        """Put a small record to those that are written together; write a large one."""
        description = item.description
        data = self._arrived(item.data, staged, 1, description.source.name)
        if data is None:
            return
        if description.hashed:
            data = fingerprint_of(description, data)
        if len(data) < LARGE:
            small.append((description, data, item.step))
        else:
            large = None if isinstance(item.data, bytes | memoryview) else staged.pop()
            self._flush(small, staged)
            self._append_large(description, data, item.step)
            if large is not None:
                large.release()

    def _collect_many(self, item: ManyValues, small: list[SmallRecord], staged: list[Staged]) -> None:
        """Put the small ones of values that were copied together to others that are small; write the large ones."""
        data = self._arrived(item.data, staged, len(item.values), f"{len(item.values)} values")
        if data is None:
            return
        view = memoryview(data)
        for description, offset, nbytes in item.values:
            value: Any = view[offset : offset + nbytes]
            if description.level.kind == "hash":
                value = fingerprint_of(description, value)
            if len(value) < LARGE:
                small.append((description, value, item.step))
            else:
                # In the order of the values; the copy is needed until all of them are written.
                self._flush(small, [])
                self._append_large(description, value, item.step)

    def _flush(self, small: list[SmallRecord], staged: list[Staged]) -> None:
        """Write what was collected."""
        try:
            self._encode(small)
        finally:
            self._write_batch()
            for copy in staged:
                copy.release()
            staged.clear()

    def _encode(self, small: list[SmallRecord]) -> None:
        """Make the frames of the small records that were collected."""
        records = small.copy()
        small.clear()
        batch = self._batch_to_fill() if records else None
        if batch is not None:
            self._records.encode_small(records, batch)
        elif records:
            self._lose(len(records), self._why_no_file())

    def _encode_step(self, item: BeginStep) -> None:
        meta: dict[str, Any] = {"step": item.number}
        if item.tags:
            meta["tags"] = dict(item.tags)
        if item.updates:
            meta["updates"] = item.updates
        try:
            layout = item.layout.wait() if isinstance(item.layout, StagedLayout) else item.layout
            if layout is not None:
                meta["layout"] = encode_layout(layout)
                frames.encode_meta(meta)
        except Exception as error:
            meta.pop("layout", None)
            self._complain(f"the token layout of step {item.number} cannot be recorded: {error}")
        batch = self._batch_to_fill()
        if batch is not None:
            self._guard(0, lambda: batch.add_step(frames.encode_frame("step", meta, batch.end)))

    def _batch_to_fill(self) -> EncodedBatch | None:
        """The batch that is being filled, or the next one; None while there is no file."""
        if self._batch is not None and self._batch.end >= self._settings.segment_size:
            self._write_batch()
        if self._batch is None and (file := self._ready()) is not None:
            self._batch = EncodedBatch(file.position)
        return self._batch

    def _write_batch(self) -> None:
        batch, file, self._batch = self._batch, self._file, None
        if batch is None or file is None:
            return
        for name, error in batch.failures:
            why = "the copy failed" if isinstance(error, DeviceError) else "cannot be encoded"
            self._lose(1, "lost_encoding", f"{name}: {why}: {error}")
        if batch.end == batch.start:
            return
        self._fill_descriptors(file)
        failure: OSError | None = None
        try:
            file.append_small(batch.buffers, batch.end, lambda: batch.ends)
        except OSError as error:
            failure = error
        rows, steps = batch.before(file.position)
        file.index.add(rows)
        file.index.steps.extend(steps)
        written = len(rows) // len(COLUMNS)
        self._status.add("written", written)
        if failure is not None:
            self._lose(len(batch) - written, "lost_writing", self._cannot_be_written(failure))

    def _why_no_file(self) -> str:
        return "lost_claimed" if self._claimed else "lost_ended" if self._finished else "lost_writing"

    def _append_large(self, description: Description, data: Any, step: int | None) -> None:
        file = self._ready()
        if file is None:
            self._lose(1, self._why_no_file())
            return
        offset = file.position
        row: list[int] = []

        def append() -> None:
            meta, content, named = self._records.encode_large_meta(description, data, step)
            view = memoryview(content)
            size = frames.LARGEST_PAYLOAD
            payloads = [view[first : first + size] for first in range(0, len(view), size)]
            placed = file.append_large(frames.encode_head(b"record", meta, len(payloads)), payloads)
            row.extend((offset, *named, placed[0][0], len(view)))

        if self._guard(1, append):
            self._fill_descriptors(file)
            file.index.add(row)
            self._status.add("written", 1)

    def _write_other(self, item: Item) -> None:
        if isinstance(item, InstalledTaps):
            self._add_preamble("taps", {"module": item.module, "taps": [dict(tap) for tap in item.taps]})
            self._add_config(item.config)
        elif isinstance(item, AddedAxes):
            self._add_preamble("parallel", {"parallel": {axis: list(place) for axis, place in item.axes.items()}})
        elif isinstance(item, Stop):
            self._finish()

    def _fill_descriptors(self, file: RankFile) -> None:
        known, all_of_them = file.index.descriptors, self._records.descriptors
        if len(known) < len(all_of_them):
            known.extend(all_of_them[len(known) :])

    def _ready(self) -> RankFile | None:
        """The file to append to; None while there is none. Opens, rolls over and reopens as needed."""
        if self._claimed or self._finished:
            return None
        now = time.monotonic()
        if self._file is not None:
            if now < self._check_at:
                return self._rolled_over()
            self._check_at = now + _CHECK_SECONDS
            if self._file.exists():
                return self._rolled_over()
            self._abandon_deleted(self._file)
        elif now < self._retry_at:
            return None
        return self._open()

    def _abandon_deleted(self, file: RankFile) -> None:
        """The file was deleted under us, which no write notices: what it held is lost."""
        lost = len(file.index)
        file.close()
        self._file = None
        self._segment += 1
        self._status.add("written", -lost)
        try:
            self._status.recreate()
        except OSError:
            log().debug("tensortap: the counts cannot be written", exc_info=True)
        self._lose(lost, "lost_writing", f"{file.path} was deleted while it was written; going on in a new file")

    def _rolled_over(self) -> RankFile | None:
        file = self._file
        if file is None or file.position < self._settings.segment_size:
            return file
        self._guard(0, file.finish)
        file.close()
        self._file = None
        self._segment += 1
        return self._open()

    def _open(self) -> RankFile | None:
        try:
            path = segment_path(self._settings.run_path, self._process.rank, self._segment)
            make_folders(path.parent, self._settings.folder_mode)
            file = RankFile(path, self._settings.file_mode, hashes_beside=self._hashes_beside)
        except ClaimedError as error:
            self._claimed = True
            self._complain(error.strerror or str(error))
            return None
        except OSError as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._complain(self._cannot_be_written(error))
            return None
        self._file = file
        self._check_at = time.monotonic() + _CHECK_SECONDS
        self._add_frame("header", self._header())
        for kind, meta in self._preamble:
            self._add_frame(kind, meta)
        return file

    def _header(self) -> dict[str, Any]:
        process = self._process
        return {
            "format": "tensortap",
            "version": frames.VERSION,
            "rank": process.rank,
            "world_size": process.world_size,
            "parallel": {axis: list(place) for axis, place in process.parallel.items()},
            "framework": process.framework,
            "versions": process.versions,
            **({"settings": process.settings} if process.settings else {}),
            "segment": self._segment,
            "run": self._run_id,
            "process": os.getpid(),
            **({"forked_from": list(self._forked_from)} if self._forked_from else {}),
            "started": time.time(),
        }

    def _add_preamble(self, kind: str, meta: dict[str, Any]) -> None:
        self._preamble.append((kind, meta))
        if self._file is not None:
            self._add_frame(kind, meta)

    def _add_config(self, config: Mapping[str, Any]) -> None:
        meta = dict(config)
        if meta and not any(kind == "config" and known == meta for kind, known in self._preamble):
            self._add_preamble("config", meta)

    def _add_frame(self, kind: str, meta: dict[str, Any]) -> None:
        file = self._file
        if file is None:
            return
        offset = file.position
        if self._guard(0, lambda: file.append_frame(kind, meta)):
            file.index.others.append(offset)

    def _finish(self) -> None:
        self._finished = True
        if self._file is None:
            self._status.set("closed", 1)
            return
        if self._file.exists():
            self._add_frame("coverage", self._coverage())
            if self._guard(0, self._file.finish):
                self._status.set("closed", 1)
        else:
            self._abandon_deleted(self._file)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _guard(self, records: int, write: Callable[[], object]) -> bool:
        """Run a write; count and report what it loses."""
        try:
            write()
        except OSError as error:
            self._lose(records, "lost_writing", self._cannot_be_written(error))
            return False
        except (ValueError, TypeError, OverflowError) as error:
            self._lose(records, "lost_encoding", f"cannot be encoded: {error}")
            return False
        return True

    def _lose(self, count: int, reason: str, message: str | None = None) -> None:
        if count:
            self._status.add(reason, count)
        if message is not None:
            self._complain(message)

    def _cannot_be_written(self, error: OSError) -> str:
        return f"{self._settings.run_path} cannot be written: {error.strerror}"

    def _complain(self, message: str) -> None:
        self._log_once.say(
            f"rank {self._process.rank}: {message}. The model runs on; what is lost is counted in the run.", key=message
        )

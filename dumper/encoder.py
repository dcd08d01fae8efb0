"""Items to frames to the rank's file, on the writer's thread, with every failure counted instead of raised."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import xxhash

from dumper.adapters.protocol import PendingLayout, Process
from dumper.control.on_nan import NanTrigger
from dumper.format import frames
from dumper.format.dtypes import as_array
from dumper.format.index import NO_STEP
from dumper.format.layouts import encode_layout
from dumper.format.status import StatusBlock
from dumper.items import BeginStep, Description, InstalledTaps, Item, Place, Stop, Submission
from dumper.measures import fingerprint
from dumper.settings import Settings
from dumper.stream import ClaimedError, RankFile, segment_path

logger = logging.getLogger("tensortap")

FORMAT_VERSION = 1
LARGE = 256 << 10
"""Bytes; payloads from here on are written by themselves, smaller ones in batches."""
_STEPS_COUNTED = 64
"""Steps whose occurrence numbers are kept: gradients come with the step of a forward pass that is over."""
_CHECK_SECONDS = 0.5
_RETRY_SECONDS = 1.0
Coverage = Callable[[], dict[str, Any]]


class RankEncoder:
    """Writes one rank's stream. Every method is called on the writer's thread; none raises because of the disk."""

    def __init__(self, settings: Settings, status: Callable[[Process], StatusBlock], coverage: Coverage) -> None:
        """``status`` makes the status block once the rank is known; ``coverage`` tells what taps did, for the end."""
        self._settings = settings
        self._make_status = status
        self._coverage = coverage
        self._status: StatusBlock | None = None
        self._process = Process()
        self._file: RankFile | None = None
        self._segment = 0
        self._claimed = False
        self._complaints: set[str] = set()
        self._retry_at = 0.0
        self._check_at = 0.0
        self._order = 0
        self._occurrences: OrderedDict[int | None, Counter[Any]] = OrderedDict()
        self._descriptors: dict[Description, tuple[int, int, bytes]] = {}
        self._preamble: list[tuple[str, dict[str, Any]]] = []
        self._trigger: NanTrigger[Item] | None = None
        if settings.on_nan is not None:
            self._trigger = NanTrigger(settings.on_nan, settings.memory_budget // 2)

    def write(self, batch: Sequence[Item]) -> None:
        """Write a batch of items in order."""
        pending = _Batch()
        for item in batch:
            for ready in self._released(item):
                self._write_item(ready, pending)
        self._flush(pending)

    def _released(self, item: Item) -> list[Item]:
        """What to write now: while a trigger waits for the first NaN, steps and records are held."""
        if self._trigger is None or not isinstance(item, Submission | BeginStep):
            return [item]
        if isinstance(item, BeginStep):
            return self._trigger.offer(item.number, item, 0, None)
        description = item.description
        array = None
        if description.dtype is not None and description.shape is not None and description.level.kind != "hash":
            # Held values must not keep pooled buffers from being used again.
            held = bytes(item.staged.wait())
            item.staged.release()
            item = Submission(description, _Held(held), item.step)
            array = as_array(held, *_payload_type(description))
        return self._trigger.offer(item.step, item, item.staged.nbytes, array)

    def _write_item(self, item: Item, pending: _Batch) -> None:
        if isinstance(item, Submission):
            self._write_record(item, pending)
        elif isinstance(item, BeginStep):
            self._flush(pending)
            self._write_step(item)
        elif isinstance(item, Place):
            self._process = item.process
            self._status = self._make_status(item.process)
        elif isinstance(item, InstalledTaps):
            self._flush(pending)
            self._add_preamble("taps", {"module": item.module, "taps": [dict(tap) for tap in item.taps]})
            self._add_config(item.config)
        elif isinstance(item, Stop):
            self._flush(pending)
            self._finish()

    def _write_record(self, item: Submission, pending: _Batch) -> None:
        try:
            data = item.staged.wait()
        except Exception as error:
            self._lose(1, "lost_encoding", f"{item.description.name}: the copy failed: {error}")
            item.staged.release()
            return
        try:
            description = item.description
            if description.level.kind == "hash" and description.dtype is not None:
                shape = description.shape or ()
                data = memoryview(bytes.fromhex(fingerprint(description.dtype, shape, data)))
            number, fields, static = self._describe(description)
            fields += 3
            if self._settings.compression == "zstd" and len(data) > _SMALLEST_COMPRESSED:
                static, data = static + _pack_pair("compression", "zstd") + _pack_pair("bytes", len(data)), _zstd(data)
                fields += 2
            occurrence = self._occurrence(item)
            meta = b"".join(
                (
                    _map_header(fields),
                    static,
                    _pack_pair("step", item.step),
                    _pack_pair("occurrence", occurrence),
                    _pack_pair("order", self._order),
                )
            )
            step = NO_STEP if item.step is None else item.step
            entry = _Entry(number, step, occurrence, self._order)
            self._order += 1
            if len(data) < LARGE:
                pending.add(meta, bytes(data), entry)
                if pending.nbytes > LARGE:
                    self._flush(pending)
            else:
                self._flush(pending)
                self._append_large(meta, data, entry)
        finally:
            item.staged.release()

    def _describe(self, description: Description) -> tuple[int, int, bytes]:
        """Number, number of fields and encoded fields of what many records share."""
        known = self._descriptors.get(description)
        if known is None:
            fields = describe(description)
            packed = b"".join(_pack_pair(key, value) for key, value in fields.items())
            known = (len(self._descriptors), len(fields), packed)
            self._descriptors[description] = known
        return known

    def _occurrence(self, item: Submission) -> int:
        counter = self._occurrences.get(item.step)
        if counter is None:
            counter = self._occurrences[item.step] = Counter()
            if len(self._occurrences) > _STEPS_COUNTED:
                self._occurrences.popitem(last=False)
        description = item.description
        key = (description.name, description.tags, description.stream)
        counter[key] += 1
        return counter[key] - 1

    def _write_step(self, item: BeginStep) -> None:
        meta: dict[str, Any] = {"step": item.number}
        if item.tags:
            meta["tags"] = dict(item.tags)
        try:
            layout = item.layout.wait() if isinstance(item.layout, PendingLayout) else item.layout
            if layout is not None:
                meta["layout"] = encode_layout(layout)
        except Exception as error:
            self._lose(1, "lost_encoding", f"the token layout of step {item.number} cannot be recorded: {error}")
        file = self._ready()
        if file is None:
            return
        offset = file.position
        if self._guard(0, lambda: file.append_frame("step", meta)):
            file.index.steps.append(offset)

    def _flush(self, pending: _Batch) -> None:
        if not pending.entries:
            return
        file = self._ready()
        count = len(pending.entries)
        if file is None:
            pending.clear()
            self._lose(count, "lost_claimed" if self._claimed else "lost_writing")
            return
        encoded, rows = pending.encode(file.position)
        length = sum(map(len, encoded))
        self._fill_descriptors(file)
        if self._guard(count, lambda: file.append_small(encoded, length)):
            for row in rows:
                file.index.add(row)
            self._wrote(count)
        pending.clear()

    def _append_large(self, meta: bytes, data: memoryview, entry: _Entry) -> None:
        file = self._ready()
        if file is None:
            self._lose(1, "lost_claimed" if self._claimed else "lost_writing")
            return
        size = frames.LARGEST_PAYLOAD
        payloads = [data[first : first + size] for first in range(0, len(data), size)]
        offset = file.position
        self._fill_descriptors(file)
        head = frames.encode_head(b"record", meta, len(payloads))
        placed: list[tuple[int, int, int]] = []
        if self._guard(1, lambda: placed.extend(file.append_large(head, payloads))):
            file.index.add(entry.row(offset, placed[0][0], len(data)))
            self._wrote(1)

    def _fill_descriptors(self, file: RankFile) -> None:
        known = file.index.descriptors
        if len(known) < len(self._descriptors):
            known.extend(describe(item) for item in list(self._descriptors)[len(known) :])

    def _wrote(self, count: int) -> None:
        if self._status is not None:
            self._status.add("written", count)

    def _ready(self) -> RankFile | None:
        """The file to append to; None while there is none. Opens, rolls over and reopens as needed."""
        if self._claimed:
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
        lost = len(file.index.columns["offset"])
        file.close()
        self._file = None
        if self._status is not None:
            self._status.add("written", -lost)
            fresh = self._make_status(self._process)
            fresh.adopt(self._status)
            self._status = fresh
        self._lose(lost, "lost_writing", f"{file.path} was deleted while it was written; going on in a new file")
        self._segment += 1

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
            file = RankFile(segment_path(self._settings.run_path, self._process.rank, self._segment))
        except ClaimedError as error:
            self._claimed = True
            self._complain(error.strerror or str(error))
            return None
        except OSError as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._complain(f"{self._settings.run_path} cannot be written: {error.strerror}")
            return None
        self._file = file
        self._add_frame("header", self._header())
        for kind, meta in self._preamble:
            self._add_frame(kind, meta)
        return file

    def _header(self) -> dict[str, Any]:
        process = self._process
        return {
            "format": "tensortap",
            "version": FORMAT_VERSION,
            "rank": process.rank,
            "world_size": process.world_size,
            "parallel": {axis: list(place) for axis, place in process.parallel.items()},
            "framework": process.framework,
            "versions": process.versions,
            "segment": self._segment,
            "process": os.getpid(),
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
        if self._file is None:
            return
        if self._file.exists():
            self._add_frame("coverage", self._coverage())
            self._guard(0, self._file.finish)
            if self._status is not None:
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
            self._lose(records, "lost_writing", f"{self._settings.run_path} cannot be written: {error.strerror}")
            return False
        except (ValueError, TypeError, OverflowError) as error:
            self._lose(records, "lost_encoding", f"cannot be encoded: {error}")
            return False
        return True

    def _lose(self, count: int, reason: str, message: str | None = None) -> None:
        if self._status is not None and count:
            self._status.add(reason, count)
        if message is not None:
            self._complain(message)

    def _complain(self, message: str) -> None:
        """One line per kind of trouble: a full disk must not fill the log as well."""
        if message not in self._complaints:
            self._complaints.add(message)
            logger.error(
                "tensortap: rank %d: %s. The model runs on; what is lost is counted in the run.",
                self._process.rank,
                message,
            )


class _Held:
    """Bytes kept while a trigger waits."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.nbytes = len(data)

    def wait(self) -> memoryview:
        return memoryview(self._data)

    def release(self) -> None:
        pass


class _Entry:
    """What the index will say of a record, but for its place in the file."""

    __slots__ = ("descriptor", "occurrence", "order", "step")

    def __init__(self, descriptor: int, step: int, occurrence: int, order: int) -> None:
        self.descriptor, self.step, self.occurrence, self.order = descriptor, step, occurrence, order

    def row(self, offset: int, payload_offset: int, payload_bytes: int) -> tuple[int, int, int, int, int, int, int]:
        return offset, self.descriptor, self.step, self.occurrence, self.order, payload_offset, payload_bytes


class _Batch:
    """Small records that are written together."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, bytes, _Entry]] = []
        self.nbytes = 0

    def add(self, meta: bytes, data: bytes, entry: _Entry) -> None:
        self.entries.append((meta, data, entry))
        self.nbytes += len(data) + len(meta)

    def clear(self) -> None:
        self.entries.clear()
        self.nbytes = 0

    def encode(self, position: int) -> tuple[list[bytes], list[tuple[int, int, int, int, int, int, int]]]:
        """Buffers to write from ``position`` on, and the rows of the index."""
        buffers: list[bytes] = []
        rows = []
        for meta, data, entry in self.entries:
            offset = position
            head = frames.encode_head(b"record", meta, 1)
            padding = frames.encode_padding(position + len(head), len(data))
            tail = frames.encode_checksum(xxhash.xxh3_64_intdigest(data))
            payload_offset = position + len(head) + len(padding)
            position = payload_offset + len(data) + len(tail)
            buffers += (head + padding, data, tail)
            rows.append(entry.row(offset, payload_offset, len(data)))
        return buffers, rows


_SMALLEST_COMPRESSED = 512


def describe(description: Description) -> dict[str, Any]:
    """The shared fields of a record as plain values, absent ones left out."""
    fields: dict[str, Any] = {"name": description.name}
    if description.tags:
        fields["tags"] = dict(description.tags)
    if description.dims is not None:
        fields["dims"] = description.dims
    if description.dtype is not None:
        fields["dtype"] = description.dtype
        fields["shape"] = list(description.shape or ())
    if str(description.level) != "full":
        fields["level"] = str(description.level)
    if description.stream != "value":
        fields["stream"] = description.stream
    if description.tap is not None:
        fields["tap"] = description.tap
    if description.recompute:
        fields["recompute"] = True
    return fields


def _payload_type(description: Description) -> tuple[str, tuple[int, ...]]:
    if description.level.kind == "stats":
        return "float64", (-1,)
    if description.level.kind == "sample":
        return description.dtype or "", (-1,)
    return description.dtype or "", description.shape or ()


def _pack_pair(key: str, value: Any) -> bytes:
    packed: bytes = msgpack.packb(key) + msgpack.packb(value, use_bin_type=True)
    return packed


def _map_header(fields: int) -> bytes:
    return bytes((0x80 | fields,)) if fields < 16 else b"\xde" + fields.to_bytes(2, "big")


def _zstd(data: memoryview) -> memoryview:
    import zstandard

    return memoryview(zstandard.ZstdCompressor().compress(data))

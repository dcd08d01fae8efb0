"""Records to frames. The hot path of the writer's thread: every byte that records share is made once."""

from __future__ import annotations

import bisect
import struct
from array import array
from typing import Any

import msgpack
import xxhash

from dumper.format import frames
from dumper.format.index import COLUMNS, NO_STEP
from dumper.values.fingerprint import block_sums, described, from_sums
from dumper.writing.framing import Framer
from dumper.writing.items import Description, SmallRecord

_KIND = b"record"
_HEAD_1 = b"\x96\xa6record\xc6"
"""A frame of one payload up to the length of its meta: array of 6, the kind, bin 32. ``frames`` says the same."""
_PADDING = tuple(bytes((0xC4, length)) + bytes(length) + b"\xc6" for length in range(frames.ALIGNMENT))
_FIXED_BYTES = len(_HEAD_1) + 4 + 9 + 2 + 5
"""Of a frame before its payload, without its meta and padding: head, length, checksum, padding header, bin header."""
_UINT32 = struct.Struct(">I").pack
_UINT64 = struct.Struct(">Q").pack
_ORDER = b"\xa5order\xcf"
_pack_order = struct.Struct(f">{len(_ORDER)}sQ").pack
_CHECKSUM = b"\xcf"
_STEPS_COUNTED = 64
"""Steps whose occurrence numbers are kept: gradients come with the step of a forward pass that is over."""
_DYNAMIC_FIELDS = 3
_SMALLEST_COMPRESSED = 512


def _pair(key: str, value: Any) -> bytes:
    packed: bytes = msgpack.packb(key) + msgpack.packb(value, use_bin_type=True, unicode_errors="backslashreplace")
    return packed


_OCCURRENCES = tuple(_pair("occurrence", number) for number in range(256))


class _Encoded:
    """What is worked out once for a description."""

    # Compiled code reads some where they lie (dumper/writing/framing).
    __slots__ = ("counts", "fields", "number", "prefix", "static", "step", "step_prefix", "summed")

    def __init__(self, description: Description, number: int, counts: dict[int | None, int]) -> None:
        fields = description.fields()
        self.number = number
        self.counts = counts
        """Step to the records there were of this name, these tags and this stream; shared by descriptions."""
        self.static = b"".join(_pair(key, value) for key, value in fields.items())
        self.fields = len(fields) + _DYNAMIC_FIELDS
        self.prefix = _map_header(self.fields) + self.static
        self.summed: bytes | bool | None = None
        """What a fingerprint is taken of, before the sums of bytes that come for the value; True where the value itself
        comes; None where no fingerprint is recorded."""
        if description.hashed:
            nbytes = description.summed_bytes
            self.summed = nbytes is None or described(description.dtype or "", description.shape or (), nbytes)
        self.step: int | None = None
        self.step_prefix = self.prefix + _pair("step", None)
        """The prefix and the field of the step that came last."""


class EncodedBatch:
    """Small records and steps, ready to be written together."""

    __slots__ = ("buffers", "end", "failures", "rows", "start", "steps")

    def __init__(self, position: int) -> None:
        self.start = position
        self.buffers: list[Any] = []
        self.end = position
        """Of the last frame, in the file."""
        self.rows = array("q")
        """Of the index, one record after the other."""
        self.steps: list[int] = []
        """Offsets of the frames of steps."""
        self.failures: list[tuple[str, Exception]] = []
        """Records that cannot be encoded, by name."""

    def __len__(self) -> int:
        """Number of records."""
        return len(self.rows) // len(COLUMNS)

    def add_step(self, frame: bytes) -> None:
        """Append the frame of a step, made for where the batch ends."""
        self.steps.append(self.end)
        self.buffers.append(frame)
        self.end += len(frame)

    @property
    def ends(self) -> list[int]:
        """The position in the file after each frame."""
        begins = sorted((*self.rows[:: len(COLUMNS)], *self.steps))
        return [*begins[1:], self.end] if begins else []

    def forget(self, buffers: int, end: int, rows: int) -> None:
        """Take back all but the first so many buffers and numbers in rows, which end there."""
        del self.buffers[buffers:], self.rows[rows:]
        self.end = end

    def before(self, position: int) -> tuple[array[int], list[int]]:
        """The rows of the records, and the offsets of the steps, that lie before a position at which a frame ends."""
        if position >= self.end:
            return self.rows, self.steps
        records = bisect.bisect_left(self.rows[:: len(COLUMNS)], position)
        return self.rows[: records * len(COLUMNS)], self.steps[: bisect.bisect_left(self.steps, position)]


class RecordEncoder:
    """Numbers records and makes their frames. Belongs to the writer's thread."""

    def __init__(self, compression: str | None, compiled: bool = True) -> None:
        """``compiled``: whether compiled code is used where it is there."""
        self.descriptors: list[dict[str, Any]] = []
        """For the index: the shared fields, by number of the description."""
        self._compress = _compressor() if compression == "zstd" else None
        self._counts: dict[tuple[Any, ...], dict[int | None, int]] = {}
        self._order = 0
        use = compiled and Framer is not None and self._compress is None
        self._framer = Framer(Description, _Encoded, _STEPS_COUNTED) if use else None

    def encode_small(self, records: list[SmallRecord], batch: EncodedBatch) -> None:
        """Append the frames of records of one payload each to a batch.

        Its buffers may be used again for the next one, once this one is let go of. After an exception, which is an
        error of ours or a lack of memory, the batch is as before.
        """
        before = len(batch.buffers), batch.end, len(batch.rows)
        try:
            self._encode_together(records, batch)
        except BaseException:
            batch.forget(*before)
            raise

    def _encode_together(self, records: list[SmallRecord], batch: EncodedBatch) -> None:
        framer, first, seen = self._framer, 0, None
        while first < len(records):
            if framer is not None and records[first][0].encoded is not None:
                begin = first
                first, batch.end, rows = framer.encode(records, begin, batch.end, self._order, batch.buffers)
                self._order += first - begin
                batch.rows.frombytes(rows)
                if first == len(records):
                    break
            record = records[first]
            if framer is not None and record is not seen and len(record) > 3 and record[0].hashed:
                # With their fingerprints the others are again records as the framer takes them.
                records = [*records[:first], *map(_fingerprinted, records[first:])]
                seen = records[first]
                continue
            self._encode_one(record, batch)
            first += 1

    def _encode_one(self, record: SmallRecord, batch: EncodedBatch) -> None:
        position = batch.end
        try:
            description, content, step = _with_content(record)
            meta, number, occurrence, data = self._meta(description, content, step)
            payload = position + _FIXED_BYTES + len(meta)
            padding = -payload % frames.ALIGNMENT
            payload += padding
            place = (self._order - 1, payload, len(data))
            # Made first: a number that does not fit must not leave half a row.
            row = array("q", (position, number, NO_STEP if step is None else step, occurrence, *place))
        except Exception as error:
            batch.failures.append((record[0].source.name, error))
            return
        digest, length = xxhash.xxh3_64_digest, _UINT32(len(data))
        head = (_HEAD_1, _UINT32(len(meta)), meta, _CHECKSUM, digest(_KIND + meta), _PADDING[padding], length)
        tail = _CHECKSUM + digest(data)
        batch.buffers += (b"".join(head), data, tail)
        batch.end = payload + len(data) + len(tail)
        batch.rows.extend(row)

    def encode_large_meta(
        self, description: Description, content: Any, step: int | None
    ) -> tuple[bytes, Any, list[int]]:
        """The meta of a record that is written by itself, its payload bytes, and the start of its row in the index:
        description, step, occurrence, order."""
        meta, number, occurrence, data = self._meta(description, content, step)
        return meta, data, [number, NO_STEP if step is None else step, occurrence, self._order - 1]

    def _meta(self, description: Description, data: Any, step: int | None) -> tuple[bytes, int, int, Any]:
        encoded: _Encoded = description.encoded or self._encode_shared(description)
        counts = encoded.counts
        occurrence = counts.get(step, 0)
        counts[step] = occurrence + 1
        if not occurrence and len(counts) > _STEPS_COUNTED:
            del counts[next(iter(counts))]
        if step != encoded.step:
            encoded.step, encoded.step_prefix = step, encoded.prefix + _pair("step", step)
        prefix = encoded.step_prefix
        if self._compress is not None and len(data) >= _SMALLEST_COMPRESSED:
            more = (_pair("compression", "zstd"), _pair("bytes", len(data)), _pair("step", step))
            prefix = b"".join((_map_header(encoded.fields + 2), encoded.static, *more))
            data = self._compress(data)
        order = self._order
        self._order = order + 1
        counted = _OCCURRENCES[occurrence] if occurrence < 256 else _pair("occurrence", occurrence)
        return prefix + counted + _pack_order(_ORDER, order), encoded.number, occurrence, data

    def _encode_shared(self, description: Description) -> _Encoded:
        counts = self._counts.setdefault((description.source.name, description.tags, description.source.stream), {})
        encoded = _Encoded(description, len(self.descriptors), counts)
        self.descriptors.append(description.fields())
        description.encoded = encoded
        return encoded


def _with_content(record: SmallRecord) -> tuple[Description, Any, int | None]:
    """The description of a record, what is written of it, and its step. Raises DeviceError when its bytes will not
    arrive from a device."""
    if len(record) == 3:
        return record
    description, slab, offset, nbytes, step = record
    data: Any = slab.view[offset : offset + nbytes]
    return description, fingerprint_of(description, data) if description.hashed else data, step


def _fingerprinted(record: SmallRecord) -> SmallRecord:
    """The same record with its fingerprint, if that is recorded of it and can be taken."""
    if len(record) == 3 or not record[0].hashed:
        return record
    try:
        return _with_content(record)
    except Exception:  # whoever encodes it meets it again
        return record


def fingerprint_of(description: Description, data: Any) -> bytes:
    """What is recorded of a value of level ``hash``, from its bytes or, where those come, their sums."""
    nbytes, sums = description.summed_bytes, bytes(data) if description.summed_bytes is not None else block_sums(data)
    return from_sums(description.dtype or "", description.shape or (), len(data) if nbytes is None else nbytes, sums)


def _map_header(fields: int) -> bytes:
    return bytes((0x80 | fields,)) if fields < 16 else b"\xde" + fields.to_bytes(2, "big")


def _compressor() -> Any:
    import zstandard

    return zstandard.ZstdCompressor().compress

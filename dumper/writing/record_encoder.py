"""Records to frames. The hot path of the writer's thread: every byte that records share is made once."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import xxhash

from dumper.format import frames
from dumper.format.index import NO_STEP
from dumper.writing.items import Description

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

    __slots__ = ("counts", "fields", "number", "prefix", "static", "step", "step_prefix")

    def __init__(self, description: Description, number: int, counts: dict[int | None, int]) -> None:
        fields = description.fields()
        self.number = number
        self.counts = counts
        """Step to the records there were of this name, these tags and this stream; shared by descriptions."""
        self.static = b"".join(_pair(key, value) for key, value in fields.items())
        self.fields = len(fields) + _DYNAMIC_FIELDS
        self.prefix = _map_header(self.fields) + self.static
        self.step: int | None = None
        self.step_prefix = self.prefix + _pair("step", None)
        """The prefix and the field of the step that came last."""


class EncodedBatch:
    """Small records, ready to be written."""

    __slots__ = ("buffers", "ends", "failures", "rows")

    def __init__(self) -> None:
        self.buffers: list[Any] = []
        self.ends: list[int] = []
        """The position in the file after each frame."""
        self.rows: list[int] = []
        """Of the index, one after the other."""
        self.failures: list[tuple[str, Exception]] = []
        """Records that cannot be encoded, by name."""

    def rows_of(self, frames: int) -> list[int]:
        """The rows of the first so many frames."""
        return self.rows[: len(self.rows) // len(self.ends) * frames]


class RecordEncoder:
    """Numbers records and makes their frames. Belongs to the writer's thread."""

    def __init__(self, compression: str | None) -> None:
        self.descriptors: list[dict[str, Any]] = []
        """For the index: the shared fields, by number of the description."""
        self._compress = _compressor() if compression == "zstd" else None
        self._counts: dict[tuple[Any, ...], dict[int | None, int]] = {}
        self._order = 0

    def encode_small(self, records: Sequence[tuple[Description, Any, int | None]], position: int) -> EncodedBatch:
        """Frames of records of one payload each, to be written at ``position``. Takes (description, bytes, step)."""
        batch = EncodedBatch()
        add, add_end, digest = batch.buffers.append, batch.ends.append, xxhash.xxh3_64_digest
        rows = batch.rows
        tail = b""
        for description, content, step in records:
            try:
                meta, number, occurrence, data = self._meta(description, content, step)
            except Exception as error:
                batch.failures.append((description.source.name, error))
                continue
            length = len(data)
            payload = position + _FIXED_BYTES + len(meta)
            padding = -payload % frames.ALIGNMENT
            payload += padding
            add(
                b"".join(
                    (
                        tail,
                        _HEAD_1,
                        _UINT32(len(meta)),
                        meta,
                        _CHECKSUM,
                        digest(_KIND + meta),
                        _PADDING[padding],
                        _UINT32(length),
                    )
                )
            )
            add(data)
            tail = _CHECKSUM + digest(data)
            rows += (position, number, NO_STEP if step is None else step, occurrence, self._order - 1, payload, length)
            position = payload + length + len(tail)
            add_end(position)
        add(tail)
        return batch

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
        if step != encoded.step:
            encoded.step, encoded.step_prefix = step, encoded.prefix + _pair("step", step)
            if len(counts) > _STEPS_COUNTED:
                del counts[next(iter(counts))]
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


def _map_header(fields: int) -> bytes:
    return bytes((0x80 | fields,)) if fields < 16 else b"\xde" + fields.to_bytes(2, "big")


def _compressor() -> Any:
    import zstandard

    return zstandard.ZstdCompressor().compress

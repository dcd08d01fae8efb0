"""Frames: the msgpack objects that a rank's file is a sequence of.

A frame is one msgpack array: ``[kind, meta, meta checksum, (padding, payload, payload checksum)...]``. ``meta`` is a
``bin`` that holds a msgpack map of its own, so that a reader can check it before it trusts it. Padding brings each
payload to a multiple of 64 bytes from the start of the file. Checksums are XXH3 with 64 bits and seed 0
(https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), that of the meta taken over ``kind`` and ``meta``.
Every field has exactly one valid encoding, so a flipped bit anywhere in a frame is found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack
import xxhash
from msgspec import Struct

VERSION = 1
"""Of the format, as the header of every file says it."""
ALIGNMENT = 64
"""Bytes; payloads start at multiples of it, so that a tensor is a view of the mapped file for any vector unit."""
LARGEST_PAYLOAD = 1 << 31
"""Bytes; msgpack's ``bin`` ends at 2**32 - 1. Larger values are split into payloads of this size."""
MOST_PAYLOADS = 1 << 16
_FIXED_FIELDS = 3
_FIELDS_PER_PAYLOAD = 3
_UINT64 = struct.Struct(">BQ")
_BIN32 = struct.Struct(">BI")
_ARRAY16 = struct.Struct(">BH")
_CODE_UINT64 = 0xCF
_CODE_BIN32 = 0xC6
_CODE_BIN8 = 0xC4
_CODE_ARRAY16 = 0xDC
_CODE_FIXARRAY = 0x90
_CODE_FIXSTR = 0xA0
_RECORD = struct.Struct(">9sI")
"""A record with one payload, up to the length of its metadata."""
_RECORD_BEGINS = struct.pack(
    ">BB6sB", _CODE_FIXARRAY | _FIXED_FIELDS + _FIELDS_PER_PAYLOAD, _CODE_FIXSTR | 6, b"record", _CODE_BIN32
)
_CHECKSUM_AND_PADDING = struct.Struct(">BQBB")
_ZEROS = [bytes(length) for length in range(ALIGNMENT)]
_RECORD_CODES = (_CODE_UINT64, _CODE_BIN8, _CODE_BIN32, _CODE_UINT64)
"""Of the checksum of the metadata, the padding, the payload and its checksum."""
_FOOTER = struct.Struct(">B7sBQBQ")
_FOOTER_KIND = b"\xa6footer"
FOOTER_BYTES = _FOOTER.size
"""The footer is the last object of a complete file and has a fixed length, so that it is found from the end."""


class FormatError(Exception):
    """Bytes that are no frame of this format; the message says what is wrong and at which offset."""


class TruncatedError(FormatError):
    """The bytes end before the frame does."""


class Payload(Struct, frozen=True):
    """Where one payload of a frame lies in the file."""

    offset: int
    length: int
    checksum: int


class Frame(Struct, frozen=True):
    """One decoded frame; payloads are positions, not bytes."""

    kind: str
    meta: bytes
    """The encoded map; ``decode_meta`` reads it."""
    payloads: tuple[Payload, ...]
    offset: int
    end: int


def checksum(data: Any) -> int:
    """XXH3-64 of a bytes-like object."""
    return xxhash.xxh3_64_intdigest(data)


def encode_head(kind: bytes, meta: bytes, payloads: int) -> bytes:
    """Everything of a frame up to its first padding field.

    ``kind`` is at most 31 ASCII bytes. Raises ValueError when there are more payloads than an array can say.
    """
    fields = _FIXED_FIELDS + _FIELDS_PER_PAYLOAD * payloads
    if payloads >= MOST_PAYLOADS // _FIELDS_PER_PAYLOAD:
        raise ValueError(f"a frame cannot hold {payloads} payloads")
    array = bytes((_CODE_FIXARRAY | fields,)) if fields < 16 else _ARRAY16.pack(_CODE_ARRAY16, fields)
    digest = checksum(kind + meta)
    return b"".join(
        (
            array,
            bytes((_CODE_FIXSTR | len(kind),)),
            kind,
            _BIN32.pack(_CODE_BIN32, len(meta)),
            meta,
            _UINT64.pack(_CODE_UINT64, digest),
        )
    )


def encode_padding(position: int, payload_length: int) -> bytes:
    """The padding field and the header of the payload that follows it.

    ``position`` is the offset in the file at which the result will be written.
    """
    padding = -(position + 2 + _BIN32.size) % ALIGNMENT
    return bytes((_CODE_BIN8, padding)) + bytes(padding) + _BIN32.pack(_CODE_BIN32, payload_length)


def encode_checksum(digest: int) -> bytes:
    """The checksum field that follows a payload."""
    return _UINT64.pack(_CODE_UINT64, digest)


def encode_frame(kind: str, meta: dict[str, Any], position: int, payloads: tuple[bytes, ...] = ()) -> bytes:
    """A whole frame; for all that is not on the hot path."""
    parts = [encode_head(kind.encode("ascii"), encode_meta(meta), len(payloads))]
    position += len(parts[0])
    for payload in payloads:
        parts += [encode_padding(position, len(payload)), payload, encode_checksum(checksum(payload))]
        position += sum(map(len, parts[-3:]))
    return b"".join(parts)


def encode_meta(meta: dict[str, Any]) -> bytes:
    """A map as msgpack bytes."""
    packed: bytes = msgpack.packb(meta, use_bin_type=True, unicode_errors="backslashreplace")
    return packed


def decode_meta(meta: bytes) -> dict[str, Any]:
    """The map in a frame's ``meta``. Raises FormatError when it is no map."""
    try:
        decoded = msgpack.unpackb(meta, raw=False, strict_map_key=False, unicode_errors="backslashreplace")
    except Exception as error:
        raise FormatError(f"the metadata is not msgpack: {error}") from error
    if not isinstance(decoded, dict):
        raise FormatError(f"the metadata is a {type(decoded).__name__}, not a map")
    return decoded


def decode_frame(data: Any, offset: int, *, verify_meta: bool = True) -> Frame:
    """The frame that starts at ``offset`` of a bytes-like object (a mapped file); reads no payload.

    Raises TruncatedError when the data ends first, and FormatError when the bytes are no frame or its metadata does
    not match its checksum.
    """
    record = _decode_record(data, offset) if verify_meta else None
    if record is not None:
        return record
    fields, position = _array_header(data, offset)
    if fields < _FIXED_FIELDS or (fields - _FIXED_FIELDS) % _FIELDS_PER_PAYLOAD:
        raise FormatError(f"an array of {fields} fields is no frame, at offset {offset}")
    _need(data, position, 1)
    length = data[position] ^ _CODE_FIXSTR
    if not 0 < length < 32:
        raise FormatError(f"no frame kind at offset {position}")
    _need(data, position, 1 + length)
    kind = bytes(data[position + 1 : position + 1 + length])
    start, length = _bin32(data, position + 1 + length)
    meta = bytes(data[start : start + length])
    digest, position = _uint64(data, start + length)
    if verify_meta and checksum(kind + meta) != digest:
        raise FormatError(f"the metadata of the frame at offset {offset} does not match its checksum")
    payloads = []
    for _ in range((fields - _FIXED_FIELDS) // _FIELDS_PER_PAYLOAD):
        start, length = _bin32(data, _padding(data, position))
        digest, position = _uint64(data, start + length)
        payloads.append(Payload(start, length, digest))
    try:
        name = kind.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError(f"the kind of the frame at offset {offset} is not ASCII") from error
    return Frame(name, meta, tuple(payloads), offset, position)


class ReadInPieces:
    """Bytes that are not in memory, nor mapped: pieces of them are read when they are asked for."""

    def view(self, start: int, end: int) -> memoryview:
        """A piece, whole."""
        raise NotImplementedError

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """A piece in pieces of its own, of which few are in memory at a time."""
        raise NotImplementedError


def _decode_record(data: Any, offset: int) -> Frame | None:
    """The frame at ``offset``, if it is an intact record with one payload, as nearly all are; in few calls."""
    found = _record(data, offset)
    if found is None:
        return None
    meta, start, length, digest = found
    return Frame("record", meta, (Payload(start, length, digest),), offset, start + length + _UINT64.size)


def hold_intact(data: Any, offsets: Iterable[int], starts: Iterable[int], length: int) -> list[bool]:
    """Of each offset whether an intact record stands there with one payload, which is of this length, is at the place
    that ``starts`` says, and is what was written: not compressed, and not damaged."""
    view, found = memoryview(data), []
    for offset, start in zip(offsets, starts, strict=True):
        one = _record(data, offset)
        found.append(
            one is not None
            and one[1] == start
            and one[2] == length
            and b"compression" not in one[0]
            and checksum(view[start : start + length]) == one[3]
        )
    return found


def _record(data: Any, offset: int) -> tuple[bytes, int, int, int] | None:
    """Metadata, and start, length and checksum of the payload."""
    try:
        begins, length = _RECORD.unpack_from(data, offset)
        # Before a length is believed: of another frame it may span the whole file.
        if begins != _RECORD_BEGINS:
            return None
        start = offset + _RECORD.size
        end = start + length
        code, digest, padding_code, padding = _CHECKSUM_AND_PADDING.unpack_from(data, end)
        padded = end + _CHECKSUM_AND_PADDING.size
        payload = padded + padding + _BIN32.size
        payload_code, payload_length = _BIN32.unpack_from(data, padded + padding)
        checksum_code, payload_digest = _UINT64.unpack_from(data, payload + payload_length)
    except (struct.error, TypeError):  # it ends before, or is of another kind; or data is read piece by piece
        return None
    meta = bytes(data[start:end])
    if (
        (code, padding_code, payload_code, checksum_code) != _RECORD_CODES
        or padding != -(padded + _BIN32.size) % ALIGNMENT
        or data[padded : padded + padding] != _ZEROS[padding]
        or checksum(b"record" + meta) != digest
    ):
        return None
    return meta, payload, payload_length, payload_digest


def payload_view(data: Any, payload: Payload) -> memoryview:
    """The bytes of a payload; of bytes and mapped files, not copied."""
    start, end = payload.offset, payload.offset + payload.length
    if isinstance(data, ReadInPieces):
        return data.view(start, end)
    return memoryview(data)[start:end]


def payload_is_intact(data: Any, payload: Payload) -> bool:
    """Whether a payload matches its checksum."""
    if not isinstance(data, ReadInPieces):
        return checksum(payload_view(data, payload)) == payload.checksum
    digest = xxhash.xxh3_64()
    for piece in data.pieces(payload.offset, payload.offset + payload.length):
        digest.update(piece)
    return digest.intdigest() == payload.checksum


def encode_footer(index_offset: int) -> bytes:
    """The last object of a complete file: ``["footer", offset of the index frame, checksum]``."""
    digest = checksum(_FOOTER_KIND + struct.pack(">Q", index_offset))
    return _FOOTER.pack(_CODE_FIXARRAY | 3, _FOOTER_KIND, _CODE_UINT64, index_offset, _CODE_UINT64, digest)


def decode_footer(data: Any, offset: int) -> int | None:
    """The offset of the index frame when a valid footer stands at ``offset``, else None."""
    if offset < 0 or offset + FOOTER_BYTES > len(data):
        return None
    array, kind, code, index_offset, digest_code, digest = _FOOTER.unpack(bytes(data[offset : offset + FOOTER_BYTES]))
    valid = (array, kind, code, digest_code) == (_CODE_FIXARRAY | 3, _FOOTER_KIND, _CODE_UINT64, _CODE_UINT64)
    if not valid or digest != checksum(_FOOTER_KIND + struct.pack(">Q", index_offset)):
        return None
    return int(index_offset)


def _need(data: Any, position: int, length: int) -> None:
    if position + length > len(data):
        raise TruncatedError(f"the file ends at {len(data)}, inside the frame that needs {position + length} bytes")


def _array_header(data: Any, offset: int) -> tuple[int, int]:
    _need(data, offset, 1)
    code = data[offset]
    if code & 0xF0 == _CODE_FIXARRAY:
        return code & 0x0F, offset + 1
    if code != _CODE_ARRAY16:
        raise FormatError(f"no frame starts at offset {offset}")
    _need(data, offset, _ARRAY16.size)
    fields = int.from_bytes(data[offset + 1 : offset + 3], "big")
    if fields < 16:
        raise FormatError(f"an array of {fields} fields in its long form, at offset {offset}")
    return fields, offset + _ARRAY16.size


def _bin32(data: Any, position: int) -> tuple[int, int]:
    """Start and length of the content of a ``bin`` field in its 32-bit form."""
    _need(data, position, _BIN32.size)
    code, length = _BIN32.unpack(data[position : position + _BIN32.size])
    if code != _CODE_BIN32:
        raise FormatError(f"no 32-bit bin at offset {position}")
    _need(data, position + _BIN32.size, length)
    return position + _BIN32.size, length


def _uint64(data: Any, position: int) -> tuple[int, int]:
    _need(data, position, _UINT64.size)
    code, value = _UINT64.unpack(data[position : position + _UINT64.size])
    if code != _CODE_UINT64:
        raise FormatError(f"no 64-bit unsigned integer at offset {position}")
    return value, position + _UINT64.size


def _padding(data: Any, position: int) -> int:
    _need(data, position, 2)
    expected = -(position + 2 + _BIN32.size) % ALIGNMENT
    if data[position] != _CODE_BIN8 or data[position + 1] != expected:
        raise FormatError(f"no padding of {expected} bytes at offset {position}")
    _need(data, position + 2, expected)
    if any(data[position + 2 : position + 2 + expected]):
        raise FormatError(f"the padding at offset {position} is not zero")
    return position + 2 + expected

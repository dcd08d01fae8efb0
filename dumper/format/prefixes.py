"""What the metadata of records that share a description begins with: all but the numbers of a record, which the dumper
writes last. Who knows a prefix need not decode the metadata of any record that begins so."""

from __future__ import annotations

import re
import struct
from typing import Any

import msgpack

from dumper.format import frames
from dumper.format.frames import FormatError
from dumper.format.index import NO_STEP, check_descriptor

DYNAMIC = frozenset({"step", "occurrence", "order", "compression", "bytes"})
"""Keys of a record that no other record need share."""
_NUMBERS = re.compile(
    rb"\xa4step(?P<step>[\x00-\x7f\xe0-\xff\xc0]|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8})"
    rb"\xaaoccurrence(?P<occurrence>[\x00-\x7f\xe0-\xff]|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8})"
    rb"\xa5order\xcf(?P<order>.{8})",
    re.DOTALL,
)
_SHORTEST, _LONGEST = 33, 49
"""Bytes of these numbers."""
_TRIED = {"step": 7, "occurrence": 11, "order": 1 << 40}


def numbers(encoded: bytes) -> tuple[int, int, int] | None:
    """Step, occurrence and order, where there is nothing else."""
    found = _NUMBERS.fullmatch(encoded)
    if found is None:
        return None
    step, occurrence = msgpack.unpackb(found["step"]), msgpack.unpackb(found["occurrence"])
    (order,) = struct.unpack(">Q", found["order"])
    if occurrence < 0 or max(step or 0, occurrence, order) >= 1 << 63:
        return None
    return NO_STEP if step is None else step, occurrence, order


def prefix_of(meta: bytes) -> bytes | None:
    """What is before the numbers; None where they are not at the end, or nothing is before them."""
    for length in range(_SHORTEST, min(_LONGEST, len(meta) - 1) + 1):
        if numbers(meta[-length:]) is not None:
            return meta[:-length]
    return None


def is_prefix_of(prefix: bytes, descriptor: bytes) -> bool:
    """Whether metadata that begins so is that of a record with this descriptor: the same fields, and three numbers. It
    may be where the bytes are others."""
    short = descriptor[:1] < b"\x90"
    if not short and descriptor[:1] != b"\xde":
        return False
    fields = len(_TRIED) + (descriptor[0] & 15 if short else int.from_bytes(descriptor[1:3], "big"))
    begin = bytes((0x80 | fields,)) if fields < 16 else b"\xde" + fields.to_bytes(2, "big")
    return prefix == begin + descriptor[1 if short else 3 :]


def shared(prefix: bytes) -> dict[str, Any] | None:
    """What all records share whose metadata begins so; None where what follows are no numbers, whatever they look
    like, or where it is nothing that records can share."""
    end = b"".join(frames.encode_meta({key: value})[1:] for key, value in _TRIED.items())
    try:
        meta = frames.decode_meta(prefix + end)
        found = {key: value for key, value in meta.items() if key not in DYNAMIC}
        check_descriptor(found)
    except FormatError:
        return None
    return found if all(meta.get(key) == value for key, value in _TRIED.items()) else None

"""Values that are no tensors, as msgpack: None, numbers, text, bytes, lists and maps of them."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

BIG_INTEGER = 1
"""Extension type of an integer beyond 64 bits: its decimal digits in ASCII."""
COMPLEX = 2
"""Extension type of a complex number: two big-endian float64, real part first."""
_LONGEST_INTEGER = 4000
_COMPLEX = struct.Struct(">dd")
_SCALARS = (str, bytes, int, float, bool, type(None))


class UnrecordableError(Exception):
    """A value that cannot be recorded; the message says why and what to do."""


def encode_value(value: Any) -> bytes:
    """A plain value as msgpack; tuples become lists, numbers of numpy become Python's.

    Raises UnrecordableError for anything else.
    """
    try:
        packed: bytes = msgpack.packb(
            _checked(value, 0), use_bin_type=True, default=_extended, unicode_errors="surrogatepass"
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnrecordableError(
            f"a {type(value).__name__} cannot be recorded ({error}); record tensors, numbers, text and lists or maps "
            "of them, and nested tensors with dumper.dump_dict"
        ) from None
    return packed


def decode_value(data: Any) -> Any:
    """The value again. Raises ValueError when the bytes are no such value."""
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, ext_hook=_extension, unicode_errors="surrogatepass"
        )
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _checked(value: Any, depth: int) -> Any:
    """The value with nothing in it that msgpack would take and not give back."""
    if isinstance(value, _SCALARS):
        return value
    if depth > 200:
        raise ValueError("nested more than 200 deep")
    if isinstance(value, list | tuple):
        return [_checked(element, depth + 1) for element in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, _SCALARS):
                raise TypeError(f"the key {key!r} of a map is no number or text")
        return {key: _checked(element, depth + 1) for key, element in value.items()}
    return value


def _extended(value: Any) -> Any:
    """What msgpack has no type for."""
    if isinstance(value, int):
        if value.bit_length() > 3 * _LONGEST_INTEGER:
            raise ValueError(f"an integer of {value.bit_length()} bits")
        return msgpack.ExtType(BIG_INTEGER, str(value).encode("ascii"))
    if isinstance(value, complex):
        return msgpack.ExtType(COMPLEX, _COMPLEX.pack(value.real, value.imag))
    module = type(value).__module__
    if module == "numpy" and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"it holds a {module}.{type(value).__qualname__}")


def _extension(code: int, data: bytes) -> Any:
    if code == BIG_INTEGER and len(data) <= _LONGEST_INTEGER:
        return int(data)
    if code == COMPLEX:
        return complex(*_COMPLEX.unpack(data))
    return msgpack.ExtType(code, data)

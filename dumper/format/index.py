"""The index: what a file's records are and where, as columns, so that 100,000 of them open at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
from msgspec import Raw, Struct, field
from msgspec.msgpack import Decoder

from dumper.format.frames import FormatError

NO_STEP = -1
COLUMNS = {
    "offset": "<u8",
    "descriptor": "<u4",
    "step": "<i8",
    "occurrence": "<u4",
    "order": "<u8",
    "payload_offset": "<u8",
    "payload_bytes": "<u8",
}
"""``offset``: of the frame; ``descriptor``: number of the shared description; ``step``: -1 for none; ``order``: the
n-th record of the rank; ``payload_…``: of the first payload, 0 without one."""


class IndexColumns(Struct):
    """The columns of one segment. What many records share (name, tags, shape, …) is stored once, as a descriptor."""

    descriptors: list[dict[str, Any]] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))
    """A number per column, row after row: small, since the records of a long run are many."""
    steps: list[int] = field(default_factory=list)
    """Offsets of the step frames."""
    others: list[int] = field(default_factory=list)
    """Offsets of all other frames (header, taps, status)."""

    def __len__(self) -> int:
        """Number of records."""
        return len(self.rows) // len(COLUMNS)

    def add(self, rows: Iterable[int]) -> None:
        """Add records: the values in the order of the columns, row after row."""
        # Made first: a number that does not fit must not leave half a row.
        self.rows.extend(rows if isinstance(rows, array) else array("q", rows))

    def meta(self) -> dict[str, Any]:
        """Metadata of the index frame."""
        return {"records": len(self), "steps": len(self.steps)}

    def encode(self) -> bytes:
        """The payload of the index frame: a msgpack map; columns are little-endian ``bin``."""
        table = np.array(self.rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        encoded: dict[str, Any] = {
            name: table[:, number].astype(dtype).tobytes() for number, (name, dtype) in enumerate(COLUMNS.items())
        }
        encoded["descriptors"] = self.descriptors
        encoded["steps"] = np.array(self.steps, dtype="<u8").tobytes()
        encoded["others"] = np.array(self.others, dtype="<u8").tobytes()
        packed: bytes = msgpack.packb(encoded, use_bin_type=True, unicode_errors="backslashreplace")
        return packed


class Index(Struct, frozen=True):
    """A decoded index."""

    descriptors: tuple[dict[str, Any], ...]
    columns: dict[str, npt.NDArray[Any]]
    steps: npt.NDArray[np.uint64]
    others: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.columns["offset"])


class _Encoded(Struct, frozen=True):
    """The map that an index is, its columns as views of the bytes."""

    offset: memoryview
    descriptor: memoryview
    step: memoryview
    occurrence: memoryview
    order: memoryview
    payload_offset: memoryview
    payload_bytes: memoryview
    descriptors: Raw
    steps: memoryview
    others: memoryview


class _Descriptors(Struct, frozen=True):
    descriptors: list[Raw]


_decode = Decoder(_Encoded).decode
Known = dict[bytes, tuple[dict[str, Any], ...]]
"""Descriptors by their bytes: those of ranks that do the same are the same, and are kept once."""


def decode_index(data: bytes | memoryview, known: Known | None = None) -> Index:
    """The index of these bytes, which it keeps. ``known``: descriptors of other files; those of this are added.

    Raises FormatError when the bytes are no index or its columns disagree.
    """
    known = {} if known is None else known
    try:
        encoded = _decode(data)
        columns = {name: np.frombuffer(getattr(encoded, name), dtype=dtype) for name, dtype in COLUMNS.items()}
        steps, others = (np.frombuffer(column, dtype="<u8") for column in (encoded.steps, encoded.others))
        text = bytes(encoded.descriptors)
        descriptors = known.get(text)
        if descriptors is None:
            found = msgpack.unpackb(text, raw=False, strict_map_key=False, unicode_errors="backslashreplace")
            descriptors = tuple(found)
            for descriptor in descriptors:
                check_descriptor(descriptor)
            known[text] = descriptors
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(f"the index cannot be read: {error}") from error
    index = Index(descriptors, columns, steps, others)
    if len({len(column) for column in columns.values()}) != 1:
        raise FormatError("the columns of the index have different lengths")
    if len(index) and columns["descriptor"].max() >= len(index.descriptors):
        raise FormatError("the index names a description that it does not have")
    return index


def encoded_descriptors(data: bytes | memoryview) -> list[bytes]:
    """The descriptors of an index that can be decoded, as they are encoded."""
    return [bytes(descriptor) for descriptor in Decoder(_Descriptors).decode(data).descriptors]


def check_descriptor(descriptor: Any) -> None:
    """Raises FormatError unless the shared fields of a record are of their types."""
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("name"), str):
        raise FormatError("a description of records has no name")
    for key in ("dtype", "dims", "level", "stream", "tap"):
        if not isinstance(descriptor.get(key), str | None):
            raise FormatError(f"{key} of {descriptor['name']!r} is no text")
    tags, shape = descriptor.get("tags", {}), descriptor.get("shape")
    if not isinstance(tags, dict) or not all(
        isinstance(key, str) and isinstance(value, str | int | float | bool | None) for key, value in tags.items()
    ):
        raise FormatError(f"the tags of {descriptor['name']!r} are no map of scalars")
    if shape is not None and not (
        isinstance(shape, list) and all(isinstance(size, int) and 0 <= size < 1 << 63 for size in shape)
    ):
        raise FormatError(f"the shape of {descriptor['name']!r} is no list of sizes")
    if "dtype" in descriptor and shape is None:
        raise FormatError(f"{descriptor['name']!r} has a dtype and no shape")


def from_columns(columns: IndexColumns) -> Index:
    """The index of columns that were collected by a scan."""
    return decode_index(columns.encode())

"""One record of a run, its value loaded when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from dumper.format import frames
from dumper.format.frames import FormatError
from dumper.format.index import NO_STEP
from dumper.memory.available import available_bytes
from dumper.readers.streams.segments import Segment
from dumper.reading.base import RecordBase
from dumper.values.dtypes import PACKED, as_array, numpy_dtype
from dumper.values.fingerprint import FIRST_SCHEME
from dumper.values.measures import decode_statistics
from dumper.values.plain import decode_value
from tensortap.lazy_rows import lazy_bytes

if TYPE_CHECKING:
    import torch

_DIGITS = 32
"""Of a fingerprint."""
_LARGEST_DECOMPRESSED = 1 << 40
_PIECE = 16 << 20
_LARGEST_RATIO = 1 << 16
"""Of uncompressed to compressed bytes, beyond what zstd reaches (blocks of 128 KiB in 4 bytes)."""
_LARGE_PAYLOAD = 64 << 20
"""Bytes; of more the memory is given back while the checksum is taken."""
LARGE_VALUE = 256 << 20
"""Bytes; before more is decompressed it is asked whether there is room."""


class StoredRecord(RecordBase):
    """What was recorded at one tap at one moment on one rank.

    ``name``, ``tags``, ``dims``, ``dtype``, ``shape``, ``level``, ``stream``, ``tap`` and ``recompute`` come from the
    index; nothing of the value is read before ``array``, ``tensor``, ``value``, ``statistics`` or ``fingerprint``.
    """

    __slots__ = ("_described", "_row", "_segment", "rank")

    def __init__(self, segment: Segment, row: int, rank: int) -> None:
        self._segment = segment
        self._row = row
        self._described = segment.described(row)
        self.rank = rank

    def _column(self, name: str) -> int:
        return int(self._segment.index.columns[name][self._row])

    @property
    def name(self) -> str:
        return self._described.name

    @property
    def step(self) -> int | None:
        """None outside any step."""
        step = self._column("step")
        return None if step == NO_STEP else step

    @property
    def tags(self) -> Mapping[str, Any]:
        return self._described.tags

    @property
    def occurrence(self) -> int:
        """The n-th record, from 0, of this name and these tags in this step on this rank."""
        return self._column("occurrence")

    @property
    def order(self) -> int:
        """The n-th record, from 0, of this rank."""
        return self._column("order")

    @property
    def tap(self) -> str | None:
        """Id of the tap; None for a call of ``dumper.dump`` in the program's own code."""
        return self._described.tap

    @property
    def kind(self) -> str:
        """``tensor`` or ``value``."""
        return self._described.kind

    @property
    def level(self) -> str:
        """``full``, ``sample``, ``stats`` or ``hash``."""
        return self._described.level

    @property
    def dtype(self) -> str | None:
        """torch's name without ``torch.``: ``bfloat16``; of the value that was dumped, whatever its level."""
        return self._described.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self._described.shape

    @property
    def dims(self) -> str | None:
        return self._described.dims

    @property
    def stream(self) -> str:
        """``value`` or ``grad``."""
        return self._described.stream

    @property
    def recompute(self) -> bool:
        """Whether the value was computed a second time, for activation checkpointing."""
        return self._described.recompute

    @property
    def graph(self) -> Mapping[str, Any] | None:
        """Of a value that a replay of a CUDA graph left: what is known of the graph (``runner``, ``role``, ``tokens``,
        ``requests``); else None."""
        return self._described.graph

    @property
    def nbytes(self) -> int:
        """Bytes of payload in the file."""
        return self._column("payload_bytes")

    @property
    def sampled_rows(self) -> range | None:
        """Of level ``sample``: the rows (of the first dimension) that were kept; else None."""
        return self._described.sampled_rows

    @property
    def source(self) -> str:
        """Where the record stands: file name and offset."""
        return f"{self._segment.path.name}@{self._column('offset')}"

    @property
    def frame_place(self) -> tuple[Segment, int]:
        """The file that holds it, and where its frame begins."""
        return self._segment, self._column("offset")

    def payload(self) -> memoryview:
        """The recorded bytes, decompressed; a view of the mapped file where they are in one piece. Where the run is on
        object storage they are read now, unless they were read ahead.

        Raises FormatError when the frame is damaged.
        """
        frame = self._segment.frame(self._column("offset"))
        parts = [frames.payload_view(self._segment.data, part) for part in frame.payloads]
        data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        if b"compression" in frame.meta:
            meta = frames.decode_meta(frame.meta)
            if meta.get("compression") == "zstd":
                data = _decompressed(data, self._uncompressed_bytes(meta, len(data)))
            elif meta.get("compression") is not None:
                raise FormatError(f"{self.source}: compressed with {meta['compression']!r}, which is not known here")
        return data if data.readonly else data.toreadonly()

    def _uncompressed_bytes(self, meta: Mapping[str, Any], compressed: int) -> int:
        size = meta.get("bytes")
        if not isinstance(size, int) or not 0 <= size < _LARGEST_DECOMPRESSED:
            raise FormatError(f"{self.source}: the record does not say how large its value is")
        if size > compressed * _LARGEST_RATIO + _PIECE:
            raise FormatError(f"{self.source}: {compressed} compressed bytes cannot hold the {size} that it claims")
        if size > LARGE_VALUE and size > available_bytes():
            raise MemoryError(f"{self.source}: {self.name} takes {size} bytes, more than this machine has left")
        return size

    @property
    def checksums(self) -> tuple[str, tuple[tuple[int, int], ...]] | None:
        """What is known of the bytes without reading them: their compression, and of each payload its length and its
        XXH3-64. None where the frame is damaged, or a file ends before it does."""
        try:
            frame = self._segment.frame(self._column("offset"))
            compression = ""
            if b"compression" in frame.meta:
                compression = str(frames.decode_meta(frame.meta).get("compression"))
        except FormatError:
            return None
        return compression, tuple((payload.length, payload.checksum) for payload in frame.payloads)

    def let_go(self, first: int = 0, stop: int | None = None) -> None:
        """Give back the memory of the mapped payload, or of some of its bytes; arrays over it stay valid and are read
        anew from the file."""
        stop = self.nbytes if stop is None else min(stop, self.nbytes)
        if first < stop:
            self._segment.let_go(self._column("payload_offset") + first, stop - first)

    @property
    def shortened(self) -> str | None:
        """In words that the file is shorter than when it was opened; None where it is not."""
        return self._segment.shortened

    def is_intact(self) -> bool:
        """Whether the bytes match their checksums."""
        try:
            frame = self._segment.frame(self._column("offset"))
        except FormatError:
            return False
        for payload in frame.payloads:  # noqa: SIM110  (a generator takes as long as the checksum of a small value)
            if not self._matches(payload):
                return False
        return True

    def _matches(self, payload: frames.Payload) -> bool:
        if payload.length < _LARGE_PAYLOAD or not self._segment.is_mapped:
            return frames.payload_is_intact(self._segment.data, payload)
        digest = xxhash.xxh3_64()
        for start in range(0, payload.length, _PIECE):
            piece = frames.Payload(payload.offset + start, min(_PIECE, payload.length - start), 0)
            digest.update(frames.payload_view(self._segment.data, piece))
            self._segment.let_go(piece.offset, piece.length)
        return digest.intdigest() == payload.checksum

    def array(self) -> npt.NDArray[Any]:
        """The tensor as numpy (``ml_dtypes`` for bf16 and fp8), read-only, of a sample the rows that were kept.

        Raises ValueError for a record that is no tensor or holds only statistics or a fingerprint, and FormatError
        when the file is damaged.
        """
        known = self._described
        dtype, shape, rows = known.dtype, known.shape, known.sampled_rows
        if dtype is None or shape is None:
            raise ValueError(f"{self.name} is no tensor; read .value")
        if known.level in ("stats", "hash"):
            raise ValueError(f"{self.name} was recorded at level {self.level}; its elements are not in the run")
        if rows is not None:
            shape = (len(rows), *shape[1:])
        try:
            return as_array(self.payload(), dtype, shape)
        except (ValueError, TypeError) as error:
            raise FormatError(f"{self.source}: {self.name}: {error}") from error

    def lazy_array(self) -> npt.NDArray[Any] | None:
        """The tensor as ``tensortap.lazy_rows`` has it, read some rows at a time; None where its bytes are not mapped
        as they are, or where it has no rows.

        Raises FormatError when the frame is damaged.
        """
        dtype, shape = self.dtype, self.shape
        if dtype is None or shape is None or len(shape) < 2 or not shape[0] or self.level != "full":
            return None
        frame = self._segment.frame(self._column("offset"))
        element = numpy_dtype(dtype)
        if b"compression" in frame.meta or not self._segment.is_mapped or element.subdtype is not None:
            return None
        if sum(payload.length for payload in frame.payloads) != math.prod(shape) * element.itemsize:
            return None
        parts = [frames.payload_view(self._segment.data, payload).toreadonly() for payload in frame.payloads]

        def release(part: int, first: int, end: int) -> None:
            self._segment.let_go(frame.payloads[part].offset + first, end - first)

        return lazy_bytes(parts, element, shape, release)

    def tensor(self) -> torch.Tensor:
        """The tensor, sharing memory with the mapped file: read-only, ``clone`` it to modify. Imports torch.

        Raises as ``array`` does.
        """
        import warnings

        import torch

        array = self.array()
        assert self.dtype is not None
        dtype = getattr(torch, self.dtype)
        if self.dtype in PACKED:
            return torch.from_numpy(array.copy()).view(dtype)  # torch copies and makes none of this type
        shape = array.shape[:-1] if self.dtype == "complex32" else array.shape
        if array.nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        with warnings.catch_warnings():
            # torch warns that the memory is read-only, as documented above.
            warnings.simplefilter("ignore")
            return torch.frombuffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, dtype=dtype).reshape(
                shape
            )

    @property
    def value(self) -> Any:
        """The value of a record that is no tensor. Raises FormatError when the file is damaged."""
        if self.dtype is not None:
            raise ValueError(f"{self.name} is a tensor; read .array() or .tensor()")
        try:
            return decode_value(self.payload())
        except ValueError as error:
            raise FormatError(f"{self.source}: {self.name}: the value cannot be read: {error}") from error

    @property
    def statistics(self) -> Mapping[str, float | int] | None:
        """Of level ``stats``: what ``dumper/values/measures.py`` lists; else None."""
        if self.level != "stats":
            return None
        return decode_statistics(self.payload())

    @property
    def fingerprint(self) -> str | None:
        """Of level ``hash``: 32 hexadecimal digits; else None. Raises FormatError when the file is damaged."""
        if self.level != "hash":
            return None
        digits = bytes(self.payload()).hex()
        if len(digits) != _DIGITS:
            raise FormatError(f"{self.source}: {self.name}: a fingerprint of {len(digits)} digits, not of {_DIGITS}")
        return digits

    @property
    def fingerprint_scheme(self) -> str | None:
        """Of level ``hash``: how the fingerprint was computed; only those of one scheme compare. Else None."""
        return (self._described.fingerprint or FIRST_SCHEME) if self.level == "hash" else None

    def __repr__(self) -> str:
        from dumper.reading.listing import record_repr

        return record_repr(self)


def _decompressed(data: memoryview, size: int) -> memoryview:
    import zstandard

    # Piece by piece, since a frame may lie about its size and would be believed.
    whole = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(data) as reader:
            while len(whole) < size and (piece := reader.read(min(_PIECE, size - len(whole)))):
                whole += piece
    except zstandard.ZstdError as error:
        raise FormatError(f"a compressed value cannot be read: {error}") from error
    if len(whole) != size:
        raise FormatError(f"a compressed value has {len(whole)} bytes and should have {size}")
    return memoryview(whole)

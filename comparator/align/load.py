"""Read the payload of an entry, and only when it is what was written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.entries import Entry
from comparator.options import Side
from comparator.plan.context import SideContext
from dumper.reading.protocol import READING_ERRORS

T = TypeVar("T")

ONCE_NOTHING_WRITES = "compare again once nothing writes to the run"
WHAT_ELSE = "python -m dumper verify RUN lists what else is damaged"


def load_array(entry: Entry) -> npt.NDArray[Any]:
    """The array of an entry, cut to its piece; raises PairError, naming rank and place, when its bytes are damaged."""
    array = _read(entry, entry.record.array)
    return array if entry.piece is None else entry.piece.cut(array)


def load_lazily(entry: Entry) -> npt.NDArray[Any]:
    """The same as an array that is read some rows at a time (``tensortap.lazy_rows``), of an entry that ``is_mapped``;
    what checking its bytes has mapped is let go of."""
    found = _read(entry, entry.record.lazy_array)
    if found is None:
        return load_array(entry)
    entry.record.let_go()
    return found


def read_together(pairs: Sequence[BundlePair], contexts: Mapping[Side, SideContext]) -> None:
    """Say of which pairs all is read next."""
    for side, context in contexts.items():
        bundles = [pair.baseline if side == "baseline" else pair.target for pair in pairs]
        context.run.read_together(entry.record for bundle in bundles if bundle is not None for entry in bundle.entries)


def load_together(bundle: Bundle, context: SideContext) -> list[npt.NDArray[Any] | None]:
    """The arrays of the entries of a bundle as far as they lie in mapped files, are intact and not large: in their
    order, None for the others, which ``load_array`` says more of."""
    entries, rows = bundle.entries.places
    found: list[npt.NDArray[Any] | None] = [None] * len(rows)
    if any(kind.piece is not None for kind in entries.kinds):
        return found
    for one in context.run.arrays_in_files(entries.record_numbers(rows).astype(np.int64, copy=False), LARGE):
        count = math.prod(one.shape)
        for at, start in zip(one.at.tolist(), one.starts.tolist(), strict=True):
            found[at] = np.frombuffer(one.data, one.dtype, count, start).reshape(one.shape)
    return found


def load_unchecked(entry: Entry) -> npt.NDArray[Any]:
    """The array of a whole entry whose bytes are still to be checked."""
    return _reading(entry, entry.record.array)


class PendingCheck:
    """The check of a whole entry, piece by piece, so that its bytes come from memory once for this and for what else
    looks at them."""

    def __init__(self, entry: Entry, nbytes: int, stored: int) -> None:
        self.nbytes = nbytes
        self._entry = entry
        self._stored = stored
        self._bytes: npt.NDArray[np.uint8] | None = None
        self._item_size = 1
        self._digest = xxhash.xxh3_64()
        self._taken = 0

    @classmethod
    def of(cls, entry: Entry) -> PendingCheck | None:
        """None for entries that are not large, of which no more than a part is looked at, and those whose bytes are
        compressed or have several checksums."""
        if entry.record.nbytes < LARGE or entry.piece is not None:
            return None
        found = entry.record.checksums
        if found is None or found[0] or len(found[1]) != 1:
            return None
        length, stored = found[1][0]
        return cls(entry, length, stored) if length == entry.record.nbytes else None

    def is_of_same(self, other: PendingCheck) -> bool:
        """Whether an entry is intact if another is and both have the same bytes."""
        return self.nbytes == other.nbytes and self._stored == other._stored

    def take(self, elements: int) -> None:
        """Take the checksum up to an element."""
        if self._bytes is None:
            array = _reading(self._entry, self._entry.record.array)
            self._item_size = array.itemsize
            self._bytes = array.reshape(-1).view(np.uint8)
        stop = elements * self._item_size
        if stop > self._taken:
            self._digest.update(self._bytes[self._taken : stop].data)
            self._taken = stop

    def let_go(self, first: int, stop: int) -> None:
        """Give back the memory that elements take in the mapped file."""
        size = self.nbytes // max(1, math.prod(self._entry.record.shape or ()))
        self._entry.record.let_go(first * size, stop * size)

    def finish(self, digest: int | None = None) -> None:
        """Raises PairError as ``check`` does. ``digest``: the checksum, where somebody else has taken it."""
        if digest is not None:
            if digest != self._stored:
                raise _damaged(self._entry)
            return
        self.take(0)
        assert self._bytes is not None
        self.take(len(self._bytes) // self._item_size)
        if self._digest.intdigest() != self._stored:
            raise _damaged(self._entry)


def is_mapped(entry: Entry) -> bool:
    """Whether an entry can be read some rows at a time, as it lies in a mapped file. True of one that is damaged."""
    try:
        return entry.piece is None and entry.record.lazy_array() is not None
    except READING_ERRORS:
        return True


def _read(entry: Entry, read: Callable[[], T]) -> T:
    check(entry)
    return _reading(entry, read)


def check(entry: Entry) -> None:
    """Raises PairError, naming rank and place, when the bytes of an entry are damaged."""
    if not entry.record.is_intact():
        raise _damaged(entry)


def _damaged(entry: Entry) -> PairError:
    record = entry.record
    if record.shortened is not None:
        return PairError(
            f"{entry.name} of rank {entry.rank} cannot be read: {record.shortened}",
            hint=ONCE_NOTHING_WRITES,
            name="damaged-record",
        )
    return PairError(
        f"the record of {entry.name} on rank {entry.rank} at {record.source} is damaged: its bytes do not match "
        "their checksum",
        hint=WHAT_ELSE,
        name="damaged-record",
    )


def _reading(entry: Entry, read: Callable[[], T]) -> T:
    try:
        return read()
    except READING_ERRORS as error:
        raise PairError(
            f"{entry.name} of rank {entry.rank} cannot be read: {error}", hint=WHAT_ELSE, name="damaged-record"
        ) from None


def cut(pair: BundlePair) -> PairError:
    """What is to be said of a pair of which bytes were gone while it was measured."""
    entries = (entry for side in (pair.baseline, pair.target) for entry in (side.entries if side is not None else ()))
    shortened = (entry.record.shortened for entry in entries)
    why = next(filter(None, shortened), "a file that it is compared with was cut while it was read")
    return PairError(f"{pair.name}: {why}", hint=ONCE_NOTHING_WRITES, name="damaged-record")


LARGE = 1 << 20
"""Bytes from which memory of a mapped payload is given back; less is not worth the call."""
SEVERAL = 16
"""Steps from which the arrays of a bundle are looked for together: of fewer it takes as long one by one."""
MAY_BE_LARGE = LARGE >> 4
"""Bytes of one record from which another of its kind, less well compressed, is taken to be large."""


def let_go(pair: BundlePair) -> None:
    """Give back the memory of what a pair has mapped of its files: it would count until the files are closed; and that
    of its entries, which are made again when they are asked for."""
    for bundle in (pair.baseline, pair.target):
        if bundle is None:
            continue
        may_be = [like.record.nbytes >= MAY_BE_LARGE for like in bundle.likes]
        for entry in bundle.entries.where(may_be) if True in may_be else ():
            if entry.record.nbytes >= LARGE:
                entry.record.let_go()
    pair.forget()

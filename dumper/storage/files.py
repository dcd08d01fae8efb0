"""Files of a run, wherever it lies: small ones read whole, and many of them one after the other or at once."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from dumper.format import regular_files
from dumper.storage.places import Place, StoredPath

T = TypeVar("T")


def read_bytes(place: Place, limit: int) -> bytes:
    """The content of a file. Raises OSError where it cannot be read, and for more than ``limit`` bytes."""
    if not isinstance(place, StoredPath):
        return regular_files.read_bytes(place, limit)
    size = place.stat().st_size
    if size > limit:
        raise OSError(errno.EFBIG, f"is {size} bytes long; {limit} is the most", str(place))
    return bytes(place.store.read(place.key, 0, size, None).data) if size else b""


def each(function: Callable[[Place], T], places: Iterable[Place]) -> Iterator[tuple[Place, T | OSError]]:
    """What the function says of each file, or why the file cannot be read, in order. On object storage several are
    looked at at a time."""

    def attempt(place: Place) -> T | OSError:
        try:
            return function(place)
        except OSError as error:
            return error

    places = list(places)
    if len(places) > 1 and isinstance(places[0], StoredPath):
        from dumper.storage.ranges import Reads

        assert isinstance(places[0].store, Reads)
        return zip(places, places[0].store.each(attempt, places), strict=True)
    return ((place, attempt(place)) for place in places)

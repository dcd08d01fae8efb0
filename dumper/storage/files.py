"""Files of a run, wherever it lies: small ones read whole, and many of them one after the other or at once."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from dumper.format import regular_files
from dumper.storage.places import Place, StoredPath, Workers

T = TypeVar("T")


def read_bytes(place: Place, limit: int) -> bytes:
    """The content of a file. Raises OSError where it cannot be read, and for more than ``limit`` bytes."""
    if not isinstance(place, StoredPath):
        return regular_files.read_bytes(place, limit)
    size = place.stat().st_size
    if size > limit:
        raise OSError(errno.EFBIG, f"is {size} bytes long; {limit} is the most", str(place))
    return bytes(place.store.read(place.key, 0, size, None).data) if size else b""


def each(
    function: Callable[[Place], T], places: Iterable[Place], workers: Workers | None = None
) -> Iterator[tuple[Place, T | OSError]]:
    """What the function says of each file, or why the file cannot be read, in order. On object storage several are
    looked at at a time; ``workers`` look in the place of this process, with a function that can be sent to them."""
    places = list(places)
    if workers is not None:
        return zip(places, workers(functools.partial(_all_of, function), places), strict=True)
    return zip(places, _each(function, places), strict=True)


def _all_of(function: Callable[[Place], T], places: Sequence[Place]) -> list[T | OSError]:
    return list(_each(function, places))


def _each(function: Callable[[Place], T], places: Sequence[Place]) -> Iterator[T | OSError]:
    def attempt(place: Place) -> T | OSError:
        try:
            return function(place)
        except OSError as error:
            return error

    if len(places) > 1 and isinstance(places[0], StoredPath):
        from dumper.storage.ranges import Reads

        assert isinstance(places[0].store, Reads)
        return places[0].store.each(attempt, places)
    return map(attempt, places)

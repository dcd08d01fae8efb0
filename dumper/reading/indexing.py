"""Indexes into values, as text: ``[0,:5]``. Parsed here, never evaluated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

Part = int | slice | EllipsisType

LONGEST = 1000
"""Characters of an index."""
_NAMED = re.compile(r"(?P<name>.+?)(?P<index>\[[^\[\]]*\])", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class IndexingError(ValueError):
    """An index that cannot be read, or does not fit the value; the message says why."""


@dataclass(frozen=True)
class Index:
    """What is taken of a value: for each dimension a number, a slice, or ``...``."""

    text: str
    parts: tuple[Part, ...]

    def of_array(self, array: Any) -> Any:
        """The part of a numpy array, shape as numpy's indexing gives it. Raises IndexingError."""
        named = sum(part is not ... for part in self.parts)
        if named > array.ndim:
            raise IndexingError(f"{self.text} has {named} indexes, and the shape is {list(array.shape)}")
        dimension = 0
        for part in self.parts:
            if part is ...:
                dimension += array.ndim - named
                continue
            size = array.shape[dimension]
            if isinstance(part, int) and not -size <= part < size:
                raise IndexingError(
                    f"{self.text}: {part} is outside dimension {dimension} of the shape {list(array.shape)}"
                )
            dimension += 1
        return array[self.parts]

    def of_value(self, value: Any) -> Any:
        """The part of a list or text, one index after the other. Raises IndexingError."""
        for part in self.parts:
            if part is ...:
                continue
            if not isinstance(value, list | tuple | str | bytes):
                raise IndexingError(f"{self.text}: a {type(value).__name__} has no {part} in it")
            if isinstance(part, int) and not -len(value) <= part < len(value):
                raise IndexingError(f"{self.text}: {part} is outside a {type(value).__name__} of {len(value)}")
            value = value[part]
        return value


def parse_index(text: str) -> Index:
    """Read ``[0, :5, ..., -1]``: whole numbers, slices ``start:stop:step`` and one ``...``. Raises IndexingError."""
    if len(text) > LONGEST or not (text.startswith("[") and text.endswith("]")):
        raise IndexingError(f"{text[:40]!r} is no index; expected for example [0,:5]")
    pieces = [piece.strip() for piece in text[1:-1].split(",")]
    if len(pieces) > 1 and not pieces[-1]:
        pieces.pop()
    parts = tuple(_part(piece, text) for piece in pieces)
    if sum(part is ... for part in parts) > 1:
        raise IndexingError(f"{text} has more than one '...'")
    return Index(text, parts)


def _part(piece: str, text: str) -> Part:
    if piece == "...":
        return ...
    if _NUMBER.fullmatch(piece):
        return int(piece)
    bounds = [bound.strip() for bound in piece.split(":")]
    if not 2 <= len(bounds) <= 3 or not all(not bound or _NUMBER.fullmatch(bound) for bound in bounds):
        raise IndexingError(f"{piece!r} in {text} is no index; expected a number, start:stop, start:stop:step or '...'")
    numbers = [int(bound) if bound else None for bound in bounds]
    if len(numbers) == 3 and numbers[2] == 0:
        raise IndexingError(f"{piece!r} in {text}: the step of a slice is not 0")
    return slice(*numbers)


def split_name(text: str, known: Sequence[str] | set[str]) -> tuple[str, Index | None]:
    """``x[0,:5]`` as name and index. A text that is a known name itself has no index, whatever it ends in.

    Raises IndexingError for an index that cannot be read.
    """
    if text in known:
        return text, None
    found = _NAMED.fullmatch(text)
    if found is not None:
        return found["name"], parse_index(found["index"])
    name, bracket, rest = text.partition("[")
    # An index that was not closed, of something that is there.
    return (name, parse_index(bracket + rest)) if bracket and name in known else (text, None)

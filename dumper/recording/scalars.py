"""Names, dims and tags as a file can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dumper.values.plain import UnrecordableError
from dumper.writing.items import TagsKey

LONGEST_TEXT = 1 << 16
"""Characters of a name, of dims and of a tag."""
_PLAIN = frozenset({str, float, bool, type(None)})


def as_scalars(tags: Mapping[str, Any]) -> TagsKey:
    """Tags as scalars, in their order. Raises UnrecordableError for text that is too long."""
    scalars = tuple((str(key), value if type(value) in _PLAIN else _as_scalar(value)) for key, value in tags.items())
    for key, value in scalars:
        if type(value) is str:
            check_text(f"tag {key}", value)
    return scalars


def check_text(what: str, text: object) -> None:
    """Raises UnrecordableError for what is no text, or more of it than describes a value."""
    if not isinstance(text, str):
        raise UnrecordableError(f"its {what} is no text but a {type(text).__name__}; give a str")
    if len(text) > LONGEST_TEXT:
        raise UnrecordableError(f"its {what} has {len(text)} characters; {LONGEST_TEXT} is the most")


def _as_scalar(value: Any) -> int | float | str | bool | None:
    """A tag as a scalar: numbers of numpy and torch as Python's, everything else as text."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            plain: int | float | str | bool = kind(value)
            # The format has integers of 64 bits.
            return plain if kind is not int or -(1 << 63) <= plain < 1 << 63 else str(plain)  # type: ignore[operator]
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        number = item()
        return _as_scalar(number) if isinstance(number, int | float | bool) else str(number)
    return str(value)

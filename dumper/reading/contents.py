"""What is in a record, as text for people and as plain values for JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dumper.reading.distribution import drawn_distribution
from dumper.reading.indexing import Index
from dumper.reading.protocol import READING_ERRORS
from tensortap.printable import printable

if TYPE_CHECKING:
    import numpy.typing as npt

    from dumper.reading.protocol import Record

LARGEST_SHOWN = 16 << 20
"""Bytes of a value that is no tensor; larger ones are not decoded for people."""
LONGEST_SHOWN = 2000
"""Characters of one text."""
LINE_WIDTH = 110
_WORDS = {math.inf: "Infinity", -math.inf: "-Infinity"}


def as_text(record: Record, elements: int, index: Index | None = None, width: int = LINE_WIDTH) -> str:
    """The content, or a part of it; of tensors of more elements than ``elements`` the first and last, and their
    distribution. Never raises for a damaged record. Not escaped yet."""
    try:
        if record.kind != "tensor":
            return _shortened(_value(record, index), elements)
        if record.level == "hash":
            return f"fingerprint {record.fingerprint} (scheme {record.fingerprint_scheme})"
        if record.level == "stats":
            return " ".join(f"{key}={value:.6g}" for key, value in (record.statistics or {}).items())
        array = part_of(record.array(), index)
        drawn = drawn_distribution(array, width) if array.size > elements else ""
        return "\n".join(filter(None, (array_text(array, elements, width), drawn)))
    except READING_ERRORS as error:
        return f"cannot be read: {error}"


def array_text(array: npt.NDArray[Any], elements: int, width: int = LINE_WIDTH) -> str:
    """An array as numpy prints it."""
    # numpy prints the small floats of ml_dtypes badly, and would convert all of a tensor to show its edges.
    formatter: Any = {"all": lambda element: f"{float(element):.6g}"} if array.dtype.kind == "V" else None
    return np.array2string(array, threshold=elements, edgeitems=3, max_line_width=width, formatter=formatter)


def part_of(array: npt.NDArray[Any], index: Index | None) -> npt.NDArray[Any]:
    """The part that the index names. Raises IndexingError."""
    return array if index is None else np.asarray(index.of_array(array))


def as_plain(record: Record, elements: int, index: Index | None = None) -> dict[str, Any]:
    """The content as what JSON can hold: ``values`` (nested lists; NaN and infinities are text, complex numbers pairs),
    ``statistics``, ``fingerprint`` and ``fingerprint_scheme``, or ``value``; ``not_shown`` says why something is left
    out."""
    shown: dict[str, Any] = {} if index is None else {"index": index.text}
    try:
        if record.kind != "tensor":
            return {**shown, "value": _plain_value(_value(record, index))}
        if record.level == "hash":
            return {**shown, "fingerprint": record.fingerprint, "fingerprint_scheme": record.fingerprint_scheme}
        if record.level == "stats":
            return {**shown, "statistics": {key: _number(value) for key, value in (record.statistics or {}).items()}}
        array = part_of(record.array(), index)
        if index is not None:
            shown["index_shape"] = list(array.shape)
        if array.size > elements:
            why = f"{array.size} elements; --elements N shows so many, and NAME[0,:5] a part"
            return {**shown, "values": None, "not_shown": why}
        return {**shown, "values": _plain_array(array)}
    except READING_ERRORS as error:
        return {**shown, "not_shown": f"cannot be read: {error}"}


def _value(record: Record, index: Index | None) -> Any:
    if record.nbytes > LARGEST_SHOWN:
        raise ValueError(f"a value of {record.nbytes} bytes is too large to show; read it with record.value")
    return record.value if index is None else index.of_value(record.value)


def _plain_array(array: npt.NDArray[Any]) -> Any:
    if array.dtype.kind == "V":
        array = array.astype(np.float64)
    return _plain_value(array.tolist())


def _plain_value(value: Any) -> Any:
    plain: Any = value
    if isinstance(value, dict):
        plain = {str(key): _plain_value(element) for key, element in value.items()}
    elif isinstance(value, list | tuple):
        plain = [_plain_value(element) for element in value]
    elif isinstance(value, np.ndarray):
        plain = _plain_array(value)
    elif isinstance(value, complex):
        plain = [_number(value.real), _number(value.imag)]
    elif isinstance(value, float):
        plain = _number(value)
    elif isinstance(value, bytes):
        plain = value.hex()
    elif not isinstance(value, int | str | None):
        plain = str(value)
    return plain


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return _WORDS.get(value, "NaN")
    return value


def _shortened(value: Any, elements: int) -> str:
    """A plain value as Python writes it, with ``…`` for what is beyond a number of elements."""
    parts: list[str] = []
    room = max(1, elements)

    def add(part: Any) -> None:
        nonlocal room
        if room <= 0:
            parts.append("…")
            return
        room -= 1
        if isinstance(part, list | dict):
            pairs = part.items() if isinstance(part, dict) else ((None, element) for element in part)
            parts.append("{" if isinstance(part, dict) else "[")
            for number, (key, element) in enumerate(pairs):
                parts.append(", " if number else "")
                if room <= 0:
                    parts.append(f"… ({len(part)} in all)")
                    break
                if isinstance(part, dict):
                    parts.append(f"{_cut(repr(key))}: ")
                add(element)
            parts.append("}" if isinstance(part, dict) else "]")
        else:
            parts.append(_cut(repr(part[:LONGEST_SHOWN] if isinstance(part, str | bytes) else part)))

    add(value)
    return "".join(parts)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}… ({len(text)} characters or more)"


def indented(text: str, by: str = "    ") -> str:
    """Lines, each escaped and moved to the right."""
    return "\n".join(f"{by}{printable(line)}" for line in text.split("\n"))

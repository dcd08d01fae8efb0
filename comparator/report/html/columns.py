"""Records as compressed columns: what the page carries in place of a table of tags.

A block is JSON, deflated (zlib, RFC 1950) and written in base64; the page inflates it with ``DecompressionStream``.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 6
"""Of zlib: 9 takes three times as long for a hundredth of the size."""
DIGITS = 4
"""Significant digits of the numbers in a page. The JSON lines of a comparison have all of them."""


def pack(value: object) -> str:
    """A value of JSON as text that may stand in a page: deflated, in base64."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8", "backslashreplace"), LEVEL)).decode("ascii")


def unpack(text: str) -> Any:
    """The value that ``pack`` made a text of."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def short(number: float | None, digits: int = DIGITS) -> float | int | None:
    """A number with few digits; None, as in the JSON lines, where it is not finite."""
    if number is None or not math.isfinite(number):
        return None
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def shortened(values: Sequence[Any], digits: int = DIGITS) -> list[Any]:
    """``short`` of many values at once; what is no float stays as it is. There are millions of them in a page."""
    numbers = np.array([value if type(value) is float else 0.0 for value in values])
    with np.errstate(all="ignore"):
        size = np.abs(numbers)
        exponent = np.floor(np.log10(np.where(size > 0, size, 1.0)))
        power = digits - 1 - exponent
        # Powers of ten are exact up to 10^22, and then a quotient is the double next to the decimal number.
        scale = 10.0 ** np.abs(power)
        rounded = np.where(power >= 0, np.rint(numbers * scale) / scale, np.rint(numbers / scale) * scale)
    simple = np.isfinite(numbers) & (np.abs(power) <= 22)
    if set(map(type, values)) == {float} and simple.all() and not (rounded == np.floor(rounded)).any():
        return list(rounded.tolist())
    return [
        value if type(value) is not float else _plain(near) if fits else short(value, digits)
        for value, near, fits in zip(values, rounded.tolist(), simple.tolist(), strict=True)
    ]


def _plain(number: float) -> float | int:
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def to_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns: ``{"rows": n, "columns": {key: [value, ...]}, "same": {key: value}}``.

    Keys of objects in objects are joined: ``baseline.stats.mean``. A key that has the same value in all rows is in
    ``same``, once. Lists have null where a row lacks the key; empty values are left out. Floats are shortened.
    """
    columns: dict[str, Any] = {}
    same: dict[str, Any] = {}
    _add_columns(rows, "", columns, same)
    return {"rows": len(rows), "columns": columns, "same": same}


_EMPTY: Mapping[str, Any] = {}


def _add_columns(rows: Sequence[Mapping[str, Any]], prefix: str, columns: dict[str, Any], same: dict[str, Any]) -> None:
    keys: dict[str, None] = {}
    for row in rows:
        keys.update(dict.fromkeys(row))
    for key in keys:
        values: list[Any] = [row.get(key) for row in rows]
        kinds = set(map(type, values))
        if dict in kinds:
            _add_columns(
                [value if type(value) is dict else _EMPTY for value in values], f"{prefix}{key}.", columns, same
            )
            continue
        if float in kinds:
            values = shortened(values)
        elif kinds & {list, str}:
            values = [None if value in ([], "") else value for value in values]
        if len(kinds) == 1 and values.count(values[0]) == len(values):
            if values[0] is not None:
                same[f"{prefix}{key}"] = values[0]
        else:
            columns[f"{prefix}{key}"] = values

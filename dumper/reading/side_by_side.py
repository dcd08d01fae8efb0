"""The records of two runs beside each other. Shows and counts bits; to judge is the comparator's."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dumper.reading.contents import as_plain, as_text, part_of
from dumper.reading.indexing import Index
from dumper.reading.protocol import READING_ERRORS
from dumper.reading.record_lines import as_json, headline
from tensortap.printable import printable

if TYPE_CHECKING:
    import numpy.typing as npt

    from dumper.reading.protocol import Record

_GAP = "  │  "
_NARROWEST = 30
"""Characters of a column; below, the two stand one after the other."""


@dataclass(frozen=True)
class Both:
    """What was recorded under the same name, tags, step, rank and occurrence in two runs; None where there is none."""

    left: Record | None
    right: Record | None


def pair_up(left: Sequence[Record], right: Sequence[Record]) -> list[Both]:
    """Records of two runs by what they are called, in the order of the first run; what only the second has comes
    last."""
    others = {_key(record): record for record in right}
    pairs = [Both(record, others.pop(_key(record), None)) for record in left]
    return pairs + [Both(None, record) for record in others.values()]


def _key(record: Record) -> Hashable:
    tags = tuple(sorted((key, repr(value)) for key, value in record.tags.items()))
    return (record.name, record.step, record.rank, record.occurrence, record.stream, record.recompute, tags)


def described_pair(both: Both, elements: int, index: Index | None, width: int) -> str:
    """The two contents beside each other, or one after the other where there is no room, and what differs."""
    record = both.left or both.right
    assert record is not None
    lines = [f"{headline(record)}{printable(index.text if index is not None else '')}"]
    if both.left is None or both.right is None:
        only = "first" if both.right is None else "second"
        return "\n".join([*lines, f"    only in the {only} run", *_indented(as_text(record, elements, index))])
    if headline(both.left) != headline(both.right):
        lines.append(f"    in the second run: {headline(both.right)}")
    column = max(_NARROWEST, (width - 4 - len(_GAP)) // 2)
    texts = [as_text(side, elements, index, column).split("\n") for side in (both.left, both.right)]
    first, second = ([printable(line) for line in text] for text in texts)
    widest = max(map(len, first))
    if 4 + widest + len(_GAP) + max(map(len, second)) <= width:
        rows = max(len(first), len(second))
        padded = [side + [""] * (rows - len(side)) for side in (first, second)]
        lines += [f"    {one:<{widest}}{_GAP}{other}".rstrip() for one, other in zip(*padded, strict=True)]
    else:
        lines += [
            "    first:",
            *(f"      {line}" for line in first),
            "    second:",
            *(f"      {line}" for line in second),
        ]
    return "\n".join([*lines, f"    {printable(difference(both.left, both.right, index))}"])


def _indented(text: str) -> Iterator[str]:
    return (f"    {printable(line)}" for line in text.split("\n"))


def difference(left: Record, right: Record, index: Index | None) -> str:
    """How two records differ, in one line."""
    try:
        if left.kind != right.kind or left.level != right.level:
            return "not alike: kinds or levels differ"
        if left.kind != "tensor":
            one, other = (side.value if index is None else index.of_value(side.value) for side in (left, right))
            return "equal" if one == other or repr(one) == repr(other) else "differ"
        if left.level == "hash":
            return _difference_of_fingerprints(left, right)
        if left.level == "stats":
            return "statistics are equal" if left.statistics == right.statistics else "statistics differ"
        return _difference_of_arrays(part_of(left.array(), index), part_of(right.array(), index))
    except READING_ERRORS as error:
        return f"cannot be compared: {error}"


def _difference_of_fingerprints(left: Record, right: Record) -> str:
    schemes = left.fingerprint_scheme, right.fingerprint_scheme
    if schemes[0] != schemes[1]:
        return f"not comparable: fingerprints of schemes {schemes[0]} and {schemes[1]}; record both runs again"
    return "fingerprints are equal" if left.fingerprint == right.fingerprint else "fingerprints differ"


def _difference_of_arrays(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> str:
    if left.shape != right.shape:
        return f"shapes differ: {list(left.shape)} and {list(right.shape)}"
    kind = np.complex128 if "c" in (left.dtype.kind, right.dtype.kind) else np.float64
    if left.dtype != right.dtype:
        left, right = left.astype(kind), right.astype(kind)
    elif np.array_equal(_bytes(left), _bytes(right)):
        return "equal in every bit"
    with np.errstate(all="ignore"):
        unequal = (left != right) & ~(np.isnan(left.astype(kind)) & np.isnan(right.astype(kind)))
    count = int(np.count_nonzero(unequal))
    if not count:
        return "equal as numbers; the bits or dtypes differ"
    first = [int(place) for place in np.argwhere(unequal)[0]]
    with np.errstate(all="ignore"):
        gaps = np.abs(left[unequal].astype(kind) - right[unequal].astype(kind))
    finite = gaps[np.isfinite(gaps)]
    largest = f", largest difference {finite.max():.6g}" if finite.size else ""
    return f"{count} of {left.size} elements differ, the first at {first}{largest}"


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def as_json_pair(both: Both, elements: int, index: Index | None) -> dict[str, Any]:
    """The same as plain values: ``first`` and ``second`` (None where there is none), and ``difference``."""
    sides = {
        name: None if record is None else {**as_json(record), **as_plain(record, elements, index)}
        for name, record in (("first", both.left), ("second", both.right))
    }
    if both.left is None or both.right is None:
        return {**sides, "difference": "only in one run"}
    return {**sides, "difference": difference(both.left, both.right, index)}

"""Compare values that are not tensors, structurally."""

from __future__ import annotations

import cmath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from comparator.align.load import load_array
from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.match.keys import named_file
from comparator.measure.measurement import ValueMeasurement
from comparator.options import Side
from comparator.rules import Rules
from dumper.reading.named_files import NamedFile


def measure_values(pair: BundlePair, rules: Rules, *, equal_nan: bool = False) -> ValueMeasurement:
    """Compare the values of a pair; raises PairError when the ranks of a side hold other values.

    NaN does not agree with NaN, as for tensors, unless ``equal_nan`` says so.
    """
    assert pair.baseline is not None
    assert pair.target is not None
    if rules.values == "first_raw":
        return _measure_raw(named_file(pair.baseline.entries[0]), named_file(pair.target.entries[0]))
    left = _values(pair.baseline, "baseline", rules)
    right = _values(pair.target, "target", rules)
    left_value, right_value = left[0], right[0]
    found: tuple[str, str] | None = None
    if len(left) == len(right):
        for one, other in zip(left, right, strict=True):
            found = first_difference(one, other)
            if found:
                left_value, right_value = one, other
                break
    else:
        found = first_difference(left[0], right[0])
    if found is None and not equal_nan:
        found = next(filter(None, (first_nan(value) for value in left)), None)
    return _measurement(left_value, right_value, found is None, found)


def _measure_raw(baseline: NamedFile, target: NamedFile) -> ValueMeasurement:
    left, right = baseline.raw_value(), target.raw_value()
    try:
        equal = bool(left == right)
    except Exception:  # tensors of several elements are neither equal nor not; other types may not compare at all
        equal = False
    return _measurement(left, right, equal, None if equal else first_difference(left, right))


def _measurement(left: Any, right: Any, equal: bool, found: tuple[str, str] | None) -> ValueMeasurement:
    path, words = found or (None, "")
    return ValueMeasurement(repr(left), repr(right), (type(left).__name__, type(right).__name__), equal, path, words)


def _values(bundle: Bundle, side: Side, rules: Rules) -> list[Any]:
    """The value of a bundle: one per step when all ranks agree; raises PairError when ranks of one side do not."""
    entries = sorted(bundle.entries, key=lambda one: (one.step or 0, one.rank))
    values = [load_array(entry) if entry.is_tensor else entry.record.value for entry in entries]
    if rules.first_value_only:
        return values[:1]
    by_step: dict[int | None, list[tuple[int, Any]]] = {}
    for entry, value in zip(entries, values, strict=True):
        by_step.setdefault(entry.step, []).append((entry.rank, value))
    kept: list[Any] = []
    for ranked in by_step.values():
        first_rank, first = ranked[0]
        kept.append(first)
        for rank, value in ranked[1:]:
            found = first_difference(first, value)
            if found:
                raise PairError(
                    f"ranks {first_rank} and {rank} of the {side} recorded other values: "
                    f"{found[0] or 'value'}: {found[1]}",
                    hint="compare rank by rank with --preset raw",
                    name="ranks-differ",
                )
    return kept


def first_difference(left: Any, right: Any) -> tuple[str, str] | None:
    """Path and wording of the first difference between two values; None when they are equal.

    The path is written as Python would index: ``['layers'][3]``; empty for the whole value. Numbers of different
    types are equal when their values are (``1`` and ``1.0``), truth values only to truth values, NaN to NaN, lists
    to tuples with the same elements. Mappings are compared without regard to order.
    """
    return _difference(left, right, "")


def first_nan(value: Any, path: str = "") -> tuple[str, str] | None:
    """Path of the first NaN in a value, with a sentence; None without one."""
    words = "NaN on both sides, which says nothing about agreement; --equal-nan accepts it"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fc" or not np.isnan(value).any():
            return None
        return path + "".join(f"[{int(index)}]" for index in np.argwhere(np.isnan(value))[0]), words
    if isinstance(value, float | complex):
        return (path, words) if cmath.isnan(value) else None
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif _is_sequence(value):
        parts = enumerate(value)
    return next(filter(None, (first_nan(part, f"{path}[{key!r}]") for key, part in parts)), None)


def _difference(left: Any, right: Any, path: str) -> tuple[str, str] | None:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return _array_difference(left, right, path)
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return _mapping_difference(left, right, path)
    if _is_sequence(left) and _is_sequence(right):
        return _sequence_difference(left, right, path)
    if _equal(left, right):
        return None
    return path, f"{_short(left)} against {_short(right)}"


def _mapping_difference(left: Mapping[Any, Any], right: Mapping[Any, Any], path: str) -> tuple[str, str] | None:
    for key in left:
        if key not in right:
            return f"{path}[{key!r}]", f"{_short(left[key])} against nothing"
        found = _difference(left[key], right[key], f"{path}[{key!r}]")
        if found:
            return found
    for key in right:
        if key not in left:
            return f"{path}[{key!r}]", f"nothing against {_short(right[key])}"
    return None


def _sequence_difference(left: Sequence[Any], right: Sequence[Any], path: str) -> tuple[str, str] | None:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        found = _difference(one, other, f"{path}[{index}]")
        if found:
            return found
    if len(left) != len(right):
        return path, f"{len(left)} elements against {len(right)}"
    return None


def _array_difference(left: Any, right: Any, path: str) -> tuple[str, str] | None:
    one, other = np.asarray(left), np.asarray(right)
    if one.shape != other.shape:
        return path, f"shape {list(one.shape)} against {list(other.shape)}"
    same = np.asarray(one == other)
    if one.dtype.kind in "fc" and other.dtype.kind in "fc":
        same |= np.isnan(one) & np.isnan(other)
    unequal = np.argwhere(~same)
    if not len(unequal):
        return None
    at = tuple(int(index) for index in unequal[0])
    return path + "".join(f"[{index}]" for index in at), f"{one[at]} against {other[at]}"


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if all(isinstance(one, float | complex) and cmath.isnan(one) for one in (left, right)):
        return True
    try:
        return bool(left == right)
    except Exception:  # a value of an unknown type may not compare; then it is not known to be equal
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""What measuring a pair gives: numbers and short texts, never tensors. One row of the table of measurements each.

As bytes (msgpack) a measurement takes some hundred, where as objects it takes some kilobytes.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from comparator.measure.difference import Difference
from comparator.measure.statistics import Statistics
from comparator.options import Side
from comparator.plan.facts import Remark, TokenNumbers


class ArrayNumbers(Struct, frozen=True, array_like=True):
    """One side of a pair."""

    shape: tuple[int, ...]
    dtype: str
    """numpy's name, of ml_dtypes where numpy has none."""
    statistics: Statistics


class ReplicaNumbers(Struct, frozen=True, array_like=True):
    """How one replica compares with the one that is used."""

    side: Side
    axis: str
    group: int
    index: int
    """Position of the replica in its group; the first one (0) is used."""
    difference: Difference | None
    """None when the shapes differ."""
    identical: bool
    """Every bit is the same; not looked at where the difference says enough."""


class TensorMeasurement(Struct, frozen=True, array_like=True):
    """A pair of tensors."""

    baseline: ArrayNumbers
    target: ArrayNumbers
    unified_shape: tuple[int, ...]
    """Shape of the aligned baseline."""
    dims: tuple[str | None, str | None]
    """That held for baseline and target."""
    difference: Difference | None
    """None when the aligned shapes differ."""
    integers: bool = False
    """Both sides hold integers or truth values."""
    same_bits: bool | None = None
    """Whether dtype and every bit agree; None where nobody asked."""
    replicas: tuple[ReplicaNumbers, ...] = ()
    downcast: Difference | None = None
    """The difference once more with both sides in the smaller dtype, where the dtypes are mixed."""
    downcast_dtype: str | None = None
    tokens: TokenNumbers | None = None
    max_token_rel: float | None = None
    """The largest ``rel`` of a single token; None where tokens cannot be told apart or nothing differs."""
    worst_token: str | None = None
    """The token with the largest difference: ``sequence 0, position 5``."""
    first_bad_token: str | None = None
    """The first token, in the order of the rows, whose own ``rel`` is beyond ``TOKEN_THRESHOLD``."""
    token_rels: tuple[float, ...] | None = None
    """``rel`` of every token, where it was asked for and the dims name the dimension of tokens."""
    samples: tuple[str, str] | None = None
    """Some values of both sides, where they differ and the report has a place for them."""
    remarks: tuple[Remark, ...] = ()
    settled: bool = False
    """Nothing was read: the checksums of the records are equal. The statistics are then empty."""


class HashMeasurement(Struct, frozen=True, array_like=True):
    """A pair of tensors of which fingerprints were recorded."""

    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    unequal: str = ""
    """Where fingerprints differ, in words; empty when they agree."""


class StatisticsMeasurement(Struct, frozen=True, array_like=True):
    """A pair of tensors of which statistics were recorded; the difference is one of summaries."""

    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    statistics: tuple[Statistics, Statistics]
    difference: Difference


class ValueMeasurement(Struct, frozen=True, array_like=True):
    """A pair of values that are no tensors, as text."""

    baseline: str
    target: str
    types: tuple[str, str]
    equal: bool
    path: str | None = None
    """Where they first differ, ``['layers'][3]``; empty for the whole value, None where that is not known."""
    difference: str = ""
    """What differs there."""


class Skipped(Struct, frozen=True, array_like=True):
    """A pair that is not compared, and why."""

    name: str
    """One of ``comparator.messages``."""
    reason: str
    """The same as SGLang's report says it."""
    message: str
    available: Side | None = None
    """The side that has it."""
    numbers: ArrayNumbers | None = None
    """Of its first tensor there."""
    dims: str | None = None
    """That hold for it there."""
    remarks: tuple[Remark, ...] = ()


class Failure(Struct, frozen=True, array_like=True):
    """A pair that cannot be compared, for a reason that concerns it alone."""

    name: str
    type: str
    message: str
    hint: str = ""
    traceback: str = ""


Measurement = TensorMeasurement | HashMeasurement | StatisticsMeasurement | ValueMeasurement | Skipped | Failure

_KINDS: tuple[type[Measurement], ...] = (
    TensorMeasurement,
    HashMeasurement,
    StatisticsMeasurement,
    ValueMeasurement,
    Skipped,
    Failure,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


def _plain(number: Any) -> Any:
    """A number of numpy's as Python's."""
    if isinstance(number, np.generic):
        return number.item()
    raise NotImplementedError(f"{type(number).__name__} in a measurement")


_pack = msgspec.msgpack.Encoder(enc_hook=_plain).encode


@functools.cache
def _decoder(kind: int) -> msgspec.msgpack.Decoder[Measurement]:
    # Made when it is asked for: that takes some milliseconds of a start.
    return msgspec.msgpack.Decoder(_KINDS[kind])


def packed(measurement: Measurement) -> tuple[int, bytes]:
    """The number of the measurement's kind, and its bytes."""
    return _NUMBERS[type(measurement)], _pack(measurement)


def unpacked(kind: int, data: bytes) -> Measurement:
    """The measurement that ``packed`` made these of."""
    return _decoder(kind).decode(data)

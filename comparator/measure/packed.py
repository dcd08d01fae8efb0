"""Measurements as bytes (msgpack): some hundred for each, where as objects they take some kilobytes."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np

from comparator.measure.measurement import (
    Failure,
    HashMeasurement,
    Measurement,
    Skipped,
    StatisticsMeasurement,
    TensorMeasurement,
    ValueMeasurement,
)

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

"""Equal parts of the channels, heads or what ranks hold: the one whose error or factor is not that of the others."""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct

from comparator.diagnosis.kernel import TINY, median
from comparator.diagnosis.measures import (
    NOTHING,
    RELEVANT,
    Difference,
    Estimate,
    Irrelevance,
    channel_weights,
    factor_of,
    sampled_rows,
    uncorrelated,
    with_error,
)
from comparator.diagnosis.tap_rows import Float, Single

SAMPLED = 48
"""Rows that are held against each other; far more than those up to which their number matters."""


class BlockNumbers(Struct, frozen=True):
    """Heads, or blocks of the size of common heads: the one that stands out."""

    size: int
    ratio: float
    """Relative error of the block over that of the median block."""
    block: int
    scale: Estimate
    """Factor of a block less that of all channels."""
    scaled_block: int
    errors: tuple[float, ...] = ()
    """Of pieces that ranks hold: the relative error of each."""


def blocks(difference: Difference, size: int, floor: float, irrelevant: Irrelevance = RELEVANT) -> BlockNumbers | None:
    """Compare blocks of ``size`` channels; None with fewer than 3 of them or fewer than 6 rows."""
    rows, count = difference.rows, difference.channels
    number = count // size
    if number < 3 or count % size or rows < 6:
        return None
    errors = _errors(difference, number)
    ratio = errors / max(median(errors), floor)
    found = _scales_of_parts(sampled_rows(difference), number, irrelevant)
    usual = max(median(difference.error), floor)
    clearest = max(range(number), key=lambda at: min(found[at].z / 10, abs(found[at].value) / usual))
    at = int(np.argmax(ratio))
    return BlockNumbers(size, float(ratio[at]), at, found[clearest], clearest)


def shards(difference: Difference, count: int, floor: float, irrelevant: Irrelevance = RELEVANT) -> BlockNumbers | None:
    """Compare ``count`` equal parts of the channels, as ranks hold them, each with the others together.

    None with fewer than 2 parts or 6 rows, and where channels cannot be divided so.
    """
    rows, channels = difference.rows, difference.channels
    if count < 2 or channels % count or channels == count or rows < 6:
        return None
    errors = _errors(difference, count)
    ratios = [errors[at] / max(median(np.delete(errors, at)), floor) for at in range(count)]
    changes = _scales_of_parts(sampled_rows(difference), count, irrelevant, with_others=True)
    usual = max(median(difference.error), floor)
    clearest = max(range(count), key=lambda at: min(changes[at].z / 10, abs(changes[at].value) / usual))
    worst = int(np.argmax(ratios))
    if count == 2:
        clearest = int(np.argmax(errors))  # of two, each differs from the other by the same factor
    return BlockNumbers(
        channels // count, float(ratios[worst]), worst, changes[clearest], clearest, tuple(errors.tolist())
    )


def independent_rows(difference: Difference) -> float:
    """How many rows' worth of errors that are independent of each other there are: (tr G)² / ‖G‖² of the errors' Gram
    matrix G over a sample of rows, less what errors of so few channels share by chance. At most the number of rows of
    the sample; infinity where nothing differs, or where these are no fewer than independent ones would be.

    Behind an attention all rows of a sequence may share the error of one token. Channels whose errors stand out are
    shrunk first, so that a fault in one of them is not taken for something that rows share.
    """
    chosen = np.linspace(0, difference.rows - 1, min(difference.rows, SAMPLED)).astype(np.int64)
    _, added = difference.take(chosen).arrays()
    weights = channel_weights(np.square(added, dtype=np.float64).sum(0))
    if weights is not None:
        added = added * weights
    gram = (added @ added.T).astype(np.float64)
    energy = float(np.square(gram).sum())
    if energy <= 0:
        return math.inf
    shared = energy / float(np.trace(gram)) ** 2 - 1 / difference.channels
    return 1 / shared if shared > 0 else math.inf


def _errors(difference: Difference, parts: int) -> Float:
    """Relative error of each of so many equal parts of the channels."""
    sums = difference.channel_sums.within(parts)
    return np.asarray(np.sqrt(sums.added / np.maximum(sums.middle, TINY)), np.float64)


def _scales_of_parts(
    sample: Difference, parts: int, irrelevant: Irrelevance, *, with_others: bool = False
) -> list[Estimate]:
    """The factor of each of so many equal parts of the channels less that of the whole, or of all others together."""
    sums = sample.channel_sums.within(parts)
    numbers = np.stack([sums.middle, sums.product, sums.added])
    whole = numbers.sum(1)
    # Added up rather than taken from the whole, so that two parts are each the other's rest.
    others = [np.delete(numbers, at, axis=1).sum(1) if with_others else whole for at in range(parts)]
    rests = np.stack(others, axis=1)
    width = sample.channels // parts
    values = [_value(*numbers[:, at]) - _value(*rests[:, at]) for at in range(parts)]
    if all(irrelevant.covers(value) for value in values):
        own = sample.rows * width
        beside = sample.rows * (sample.channels - width if with_others else sample.channels)
        return [
            _plain_estimate(numbers[:, at], own).minus(_plain_estimate(rests[:, at], beside)) for at in range(parts)
        ]
    middle, added = sample.arrays()
    holder = np.repeat(np.arange(parts), width)
    of_all = None if with_others else _estimate(whole, middle, added)
    found = []
    for at in range(parts):
        inside = slice(at * width, (at + 1) * width)
        mine = _estimate(numbers[:, at], middle[:, inside], added[:, inside])
        found.append(mine.minus(of_all or _estimate(rests[:, at], middle[:, holder != at], added[:, holder != at])))
    return found


def _value(middle: float, product: float, added: float) -> float:
    found = factor_of(middle, product, added)
    return 0.0 if found is None else found.value


def _plain_estimate(sums: Float, elements: int) -> Estimate:
    middle, product, added = sums.tolist()
    found = factor_of(middle, product, added)
    if found is None:
        return NOTHING
    return found if found.error else uncorrelated(found.value, middle, product, added, elements)


def _estimate(numbers: Float, middle: Single, added: Single) -> Estimate:
    found = factor_of(*numbers.tolist())
    if found is None:
        return NOTHING
    if found.error:
        return found
    return with_error(found.value, np.ascontiguousarray(middle), np.ascontiguousarray(added))

"""The thresholds of tests that depend on what a tap computes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from comparator.diagnosis.floors import Operation, unit_roundoff


class Limits(Struct, frozen=True):
    """Thresholds of one kind of operation."""

    growth: float
    """Median ratio of a row's error to what its inputs and rounding explain."""
    row: float
    """Largest ratio of a row."""
    scale_z: float
    scale: float
    """Common factor less one, over the median error of a row."""
    row_scale: float
    """Ratio of a row over the median ratio, times |cos| of value and difference."""
    group: float
    """Median ratio of a group of rows over that of the others."""
    group_scale: float
    channel: float


LIMITS: Mapping[Operation, Limits] = {
    "attention": Limits(1.75, 5, 8, 0.15, 2.5, 3, 1.0, 6),
    "recurrence": Limits(1.75, 100, 8, 0.30, 100, 3, 2.0, 9),
    "linear": Limits(1.75, 2.5, 6, 0.12, 1.6, 2, 0.7, 5),
    "sum": Limits(1.4, 2.5, 8, 0.10, 2.2, 2.2, 0.6, 6),
    "sum_without_identity": Limits(1.5, 2.5, 8, 0.12, 1.6, 2, 0.7, 4),
    "mlp": Limits(1.4, 3, 8, 0.10, 2, 2, 0.7, 3),
    "moe": Limits(1.5, 4, 8, 0.18, 3, 2.6, 1.0, 3.5),
    "router": Limits(1.5, 6, 8, 0.30, 8, 3, 1.0, 9),
    "norm": Limits(1.4, 2.5, 6, 0.12, 1.6, 2, 0.6, 4),
    "logits": Limits(1.4, 2.5, 6, 0.15, 1.6, 2, 0.6, 5),
    "combine": Limits(1.4, 3, 6, 0.12, 3, 2, 1.0, 4),
    "source": Limits(1.4, 2.5, 8, 0.12, 1.6, 2, 0.7, 5),
    "embedding": Limits(1.4, 2.5, 8, 0.12, 1.6, 2, 0.7, 5),
    "unseen": Limits(1.8, 6, 8, 0.12, 8, 3, 1.0, 5),
    "encoder": Limits(1.4, 5, 8, 0.12, 5, 3, 1.0, 9),
    "unknown": Limits(1.8, 6, 8, 0.30, 8, 3, 1.0, 9),
}
LEAST_SCALE: Mapping[Operation, float] = {
    "moe": 0.75,
    "combine": 0.75,
    "attention": 1.0,
    "recurrence": 1.0,
    "encoder": 1.0,
    "embedding": 0.2,
}
LEAST_SCALE_ELSEWHERE = 0.45
"""Common factors of right kernels, in unit roundoffs: up to 1.3e-3 was measured in bf16, 2.9e-3 behind experts. An
attention that cuts its probabilities off where another rounds them is smaller by .72 on average (the mean of a
roundoff over significands); 3.3e-3 was measured between two engines. An embedding is looked up, and multiplied by a
constant at most: two right ones have the same factor, since every engine rounds to nearest there."""
CUT_OFF = 0.72
"""Mean of what cutting a value off takes from it, in unit roundoffs, over significands."""
STORED: Mapping[Operation, int] = {
    "attention": 4, "recurrence": 5, "mlp": 5, "moe": 5, "unknown": 5, "encoder": 5,
    "norm": 2, "router": 2, "embedding": 0,
}  # fmt: skip
"""Values stored on the way whose factors reach the output. Attention: norm, values, probabilities, heads. MLP: norm,
gate, up, their product, output. An embedding: none. Elsewhere one."""
HEAD = 2.2
"""Error of a head over that of the median head."""
SHARD = 2.2
"""As of a head, which is a part of the channels as well."""
CHANNEL_SCALE = 2.0
HEAD_SCALE = 0.7
SHARD_SCALE = 0.7
"""As of a head, which is a part of the channels as well."""
EXPERT_SCALE = 0.7


ENOUGH_ROWS = 12.0
"""Rows with independent errors from which limits of parts of the channels hold as they are."""
ENOUGH_FOR_A_FACTOR = 24.0
"""The same for the factor of all rows."""
TAIL_Z = 4.26
"""The normal deviate that one of 100,000 exceeds."""


def channel_scale_limit(limits: Limits, independent: float = math.inf) -> float:
    """Half that of a channel's error, since the factor is significant as well; but nothing is significant in few rows'
    worth of independent errors."""
    least = max(CHANNEL_SCALE, limits.channel / 2)
    share = min(1.0, max(0.0, ENOUGH_FOR_A_FACTOR / max(independent, 1.0) - 1) / 3)
    return least + share * (max(limits.channel, least) - least)


def widened(independent: float) -> float:
    """What limits of the size of an error in a part of the channels are multiplied by, with so many rows' worth of
    independent errors.

    The energy of a part's error is then like a chi-squared variable of so few degrees of freedom, and the largest of
    many far above the median one: its tail over its median (Wilson and Hilferty, 1931), relative to enough rows.
    """
    if independent >= ENOUGH_ROWS:
        return 1.0
    return _tail(max(independent, 1.0)) / _tail(ENOUGH_ROWS)


def growth_limit(limits: Limits, independent: float) -> float:
    """The median of rows that share one error is the ratio of a single row: half way to the limit of these."""
    share = max(0.0, ENOUGH_ROWS / max(independent, 1.0) - 1) / (ENOUGH_ROWS - 1)
    return limits.growth + share / 2 * (limits.row - limits.growth)


def widened_factor(independent: float) -> float:
    """The same of the size of a factor common to all rows: of so few it is a mean, whose spread falls with the root."""
    return math.sqrt(max(1.0, ENOUGH_FOR_A_FACTOR / max(independent, 1.0)))


def _tail(degrees: float) -> float:
    variance = 2 / (9 * degrees)
    return float((1 + TAIL_Z * variance**0.5 / (1 - variance)) ** 1.5)


def least_scale(operation: Operation, baseline_dtype: str, target_dtype: str, *, other_engine: bool = False) -> float:
    """A factor by which right kernels may differ, also in some rows, heads or shards that another path computes."""
    share = LEAST_SCALE.get(operation, LEAST_SCALE_ELSEWHERE)
    if other_engine:
        share = max(share, CUT_OFF * STORED.get(operation, 1))
    return share * max(unit_roundoff(baseline_dtype), unit_roundoff(target_dtype))

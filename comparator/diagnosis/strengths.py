"""Every test of the table as a strength: value over threshold, so that 1 is an alarm whatever the test.

A test of a common factor needs both a significance and a size: right kernels do differ by systematic factors, which
enough rows make significant. The thresholds are few and per kind of operation; ``docs/tolerances.md`` lists them with
what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from comparator.diagnosis.chosen import FEWEST_USERS
from comparator.diagnosis.floors import floor_for
from comparator.diagnosis.kernel import TINY, median
from comparator.diagnosis.limits import (
    EXPERT_SCALE,
    HEAD,
    HEAD_SCALE,
    LIMITS,
    SHARD,
    SHARD_SCALE,
    channel_scale_limit,
    growth_limit,
    least_scale,
    widened,
    widened_factor,
)
from comparator.diagnosis.measures import NOTHING, Estimate
from comparator.diagnosis.profiling import CHANNEL_Z, FEWEST_ROWS
from comparator.diagnosis.routing import Choices
from comparator.diagnosis.tap_graph import BEHIND_EXPERTS
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.tap_rows import Float, Mask, groups_of
from tensortap.distinct import distinct

GROUP_Z = 6.0
HEAD_Z = 10.0
SHARD_Z = 10.0
"""As of a head, which is a part of the channels as well."""
GUESSED_HEAD = 3.0
"""Where the size of a head is not known, several are tried."""
EXPERT, EXPERT_Z = 2.0, 8.0
OFFSET_Z, OFFSET = 6.0, 0.4
SUM_FLOORS, SUM_FACTOR = 8.0, 4.0
OUTLIER_SHARE = 2.5
"""Behind a norm an input's factor is gone, but for that of massive channels: this much of it may be left."""
SHARED_BY_EXPERTS = 3
"""Rows of experts' outputs look more independent than they are: an error that all inputs share is another in each
expert. Of 33 rows of a sequence inputs had 1.3 to 6.8 rows' worth, outputs 16 to 20."""
LEAST_RATIO = 0.7
"""Rows whose ratio is below count as this much, so that nothing stands out over rows that agree bit for bit."""
FLIPPED = 0.5
"""Error of most of a few rows that no other choice of experts explains."""
FLIPPED_BEFORE = 0.25
"""The same of most of many rows, behind experts of which nothing was recorded: one token whose experts are others is
part of all later ones. Up to .14 was measured."""
REPLACED = 1.3
"""The same of one row of what experts are added to: that of a row which has nothing to do with the other is 1.4."""
TESTS_OF_THE_TRIAL = 100
"""Taps up to which significances need no correction; they are far beyond chance for so many."""
ROWS_OF_THE_TRIAL = 200


class Test(Struct, frozen=True):
    """One test of one tap."""

    __test__ = False

    name: str
    strength: float
    """Value over threshold; from 1 on a fault."""
    value: float
    """Of a factor: the factor less one, with its sign, against the midpoint of both sides."""
    threshold: float
    where: str = ""
    """The row, group, channel, head or expert that it is about."""
    encoded: bool = False
    """It is about the rows that an encoder of images or sound made."""


class Context(Struct, frozen=True, eq=False):
    """What the graph says about a tap, beside its own numbers. Arrays of shape ``(rows,)``."""

    ratio: Float
    """Error over what inherited error and floor explain."""
    row_ratio: Float
    """The same with the largest error that a row may inherit: for tests of single rows and groups."""
    floor: Float
    own_floor: float
    """Without what layers that were not seen may have added."""
    compared: Mask
    """Rows that are no ties."""
    steady: Mask
    """Rows without a tie before them in their sequence, for growth."""
    inherited_scale: Estimate = NOTHING
    outlier_scale: float = 0.0
    """Raw less shrunk factor of the input."""
    taps: int = 1
    """Taps that are judged, for the correction of significances."""
    without_routing: bool = False
    """Rows may have other experts and nothing recorded tells."""
    routed_unseen: bool = False
    """Nor is it recorded what these experts gave, which all rows behind them may have in part."""
    other_engine: bool = False
    """Engines differ: one may cut off what the other rounds, at every value that is stored."""
    choice: Choices | None = None
    """The experts of each row, where they are known."""


def critical(z: float, tests: int) -> float:
    """The significance that ``z`` stands for in the trial, when there are ``tests`` tests (Bonferroni, normal tail)."""
    return math.sqrt(z * z + 2 * math.log(max(1.0, tests / TESTS_OF_THE_TRIAL)))


def largest_of(limit: float, rows: int) -> float:
    """A limit for the largest of ``rows`` ratios, whose tail is taken as exponential beyond the trial's number."""
    return limit * (1 + 0.1 * math.log(max(1.0, rows / ROWS_OF_THE_TRIAL)))


def run_tests(found: TapProfile, context: Context) -> tuple[Test, ...]:
    """All tests of a tap, strongest first."""
    if found.identical:
        return ()
    tests = [
        *_whole(found),
        *_rows(found, context),
        *_scales(found, context),
        *_parts(found, context),
    ]
    return tuple(sorted(tests, key=lambda test: -test.strength))


def _whole(found: TapProfile) -> Iterator[Test]:
    if found.nonfinite.apart:
        yield Test("nonfinite", math.inf, found.nonfinite.apart, 0, found.nonfinite.first or "")
    if any(found.zero):
        yield Test("zero", math.inf, 1, 0, "baseline" if found.zero[0] else "target")
    if found.residuals is not None:
        yield from _identity(found)


def _identity(found: TapProfile) -> Iterator[Test]:
    residuals = found.residuals
    assert residuals is not None
    least = _identity_floor(found)
    for side, own, other in (
        ("target", residuals.target, residuals.baseline),
        ("baseline", residuals.baseline, residuals.target),
    ):
        limit = max(least, SUM_FACTOR * other)
        yield Test("sum identity", own / limit, own, limit, side)


def _identity_floor(found: TapProfile) -> float:
    return SUM_FLOORS * floor_for("sum", found.baseline_dtype, found.target_dtype, ranks=found.ranks).floor


def _rows(found: TapProfile, context: Context) -> Iterator[Test]:
    limits, ratio = LIMITS[found.operation], context.ratio
    compared = context.compared
    if not compared.any():
        return
    steady = context.steady & compared
    used = steady if steady.sum() >= min(10, compared.sum()) else compared
    growth, error = median(ratio[used]), median(found.added[used])
    limit = growth_limit(limits, found.independent)
    explained = FLIPPED if context.without_routing and used.sum() < FEWEST_ROWS else FLIPPED_BEFORE
    if explained == FLIPPED or context.routed_unseen:
        limit = max(limit, explained * growth / max(error, TINY))
    yield Test("growth", growth / limit, growth, limit)
    if context.without_routing:
        yield from _rows_beyond_flips(found, compared)
        return
    ratio = context.row_ratio
    rows = np.flatnonzero(compared)
    at = int(rows[np.argmax(ratio[rows])])
    limit = largest_of(limits.row, len(rows))
    yield Test("row", float(ratio[at]) / limit, float(ratio[at]), limit, found.labels.describe(at))
    if len(rows) < FEWEST_ROWS:
        return
    usual = max(median(ratio[rows]), LEAST_RATIO)
    stretched = ratio / usual * found.cosine
    at = int(rows[np.argmax(stretched[rows])])
    limit = largest_of(limits.row_scale, len(rows))
    yield Test("row scale", float(stretched[at]) / limit, float(stretched[at]), limit, found.labels.describe(at))
    for name, mask in groups_of(found.labels).items():
        inside, outside = mask & compared, ~mask & compared
        if min(inside.sum(), outside.sum()) >= FEWEST_ROWS:
            value = median(ratio[inside]) / max(median(ratio[outside]), LEAST_RATIO)
            yield Test("group", value / limits.group, value, limits.group, name)


def _rows_beyond_flips(found: TapProfile, compared: Mask) -> Iterator[Test]:
    """Other experts change an output entirely, and only in part what it is added to."""
    if found.operation not in ("moe", "combine") and found.key.name not in BEHIND_EXPERTS:
        rows = np.flatnonzero(compared)
        at = int(rows[np.argmax(found.added[rows])])
        value = float(found.added[at])
        yield Test("row replaced", value / REPLACED, value, REPLACED, found.labels.describe(at))


def _usual_error(found: TapProfile, context: Context) -> float:
    """Median error of a row, at least half the floor: below it factors are those of single roundings."""
    rows = context.compared if context.compared.any() else np.ones(found.rows, np.bool_)
    return max(median(found.added[rows]), context.own_floor / 2, TINY)


def _sized(name: str, estimate: Estimate, z: float, size: float, where: str = "") -> Test:
    """A factor that is a fault when it is both significant and large: the weaker of both strengths."""
    strength = min(estimate.z / z, abs(estimate.value) / size)
    return Test(name, float(strength), estimate.value, size, where)


def _scales(found: TapProfile, context: Context) -> Iterator[Test]:
    limits, usual = LIMITS[found.operation], _usual_error(found, context)
    z = critical(limits.scale_z, context.taps)
    change = found.scale.minus(context.inherited_scale)
    value = math.copysign(max(abs(change.value) - OUTLIER_SHARE * context.outlier_scale, 0.0), change.value)
    least = _least_scale(found, context)
    independent = found.independent
    if found.operation == "moe":
        independent = min(independent, int(context.compared.sum()) / SHARED_BY_EXPERTS)
    size = max(limits.scale * usual * widened_factor(independent), least)
    yield _sized("scale", Estimate(value, change.error), z, size)
    yield _sized("offset", found.offset, critical(OFFSET_Z, context.taps), OFFSET * usual)
    for group in found.group_scales:
        z = critical(GROUP_Z, context.taps)
        yield _sized("group scale", group.scale, z, max(limits.group_scale * usual, least), group.group)


def _least_scale(found: TapProfile, context: Context) -> float:
    engine = context.other_engine
    return least_scale(found.operation, found.baseline_dtype, found.target_dtype, other_engine=engine)


def _parts(found: TapProfile, context: Context) -> Iterator[Test]:
    limits, usual, least = LIMITS[found.operation], _usual_error(found, context), _least_scale(found, context)
    channels, wider = found.channels, widened(found.independent)
    if channels is not None:
        limit = limits.channel * wider
        yield Test("channel", channels.ratio / limit, channels.ratio, limit, f"channel {channels.channel}")
        clear = channels.scale.z / critical(CHANNEL_Z, context.taps)
        where = f"channel {channels.scaled_channel}"
        size = channel_scale_limit(limits, found.independent) * wider
        strength = min(clear, channels.scaled_ratio / size)
        yield Test("channel scale", strength, channels.scaled_ratio, size, where)
    # Where most rows are behind a tie, one head may look at the token whose experts flipped.
    unsteady = 2 * (context.steady & context.compared).sum() < context.compared.sum()
    guessed = len(found.blocks) > 1 or unsteady
    for block in found.blocks:
        limit = (GUESSED_HEAD if guessed else HEAD) * wider
        yield Test("head", block.ratio / limit, block.ratio, limit, f"head {block.block} of size {block.size}")
        where = f"head {block.scaled_block} of size {block.size}"
        yield _sized("head scale", block.scale, critical(HEAD_Z, context.taps), max(HEAD_SCALE * usual, least), where)
    for shard in found.shards:
        parts = found.channel_count // shard.size
        where = f"shard {shard.block} of {parts}"
        limit = SHARD * wider
        yield Test("shard", shard.ratio / limit, shard.ratio, limit, where)
        where = f"shard {shard.scaled_block} of {parts}"
        yield _sized(
            "shard scale", shard.scale, critical(SHARD_Z, context.taps), max(SHARD_SCALE * usual, least), where
        )
    for expert in found.experts:
        where = f"expert {expert.expert}"
        yield _sized(
            "expert scale", expert.scale, critical(EXPERT_Z, context.taps), max(EXPERT_SCALE * usual, least), where
        )
    if context.choice is not None:
        yield from _experts(context, context.choice)


def _experts(context: Context, choice: Choices) -> Iterator[Test]:
    """Rows that use an expert against those that do not."""
    ratio, chosen = context.ratio[context.compared], choice.experts[context.compared]
    for expert in distinct(chosen[chosen >= 0]):
        users = (chosen == expert).any(1)
        if min(users.sum(), (~users).sum()) >= FEWEST_USERS:
            value = median(ratio[users]) / max(median(ratio[~users]), LEAST_RATIO)
            yield Test("expert", value / EXPERT, value, EXPERT, f"expert {expert}")

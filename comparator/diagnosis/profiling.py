"""Measure one tap: from the rows of both sides to the numbers that the diagnosis needs. Tensors end here."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from comparator.diagnosis.channel_blocks import BlockNumbers, blocks, independent_rows, shards
from comparator.diagnosis.chosen import choices_of, experts_of, tokens_of
from comparator.diagnosis.floors import Operation, floor_for
from comparator.diagnosis.kernel import (
    TINY,
    Counts,
    FirstLook,
    Matrices,
    first_look,
    median,
    relative,
    row_sums,
    to_single,
)
from comparator.diagnosis.limits import (
    EXPERT_SCALE,
    HEAD,
    HEAD_SCALE,
    LIMITS,
    SHARD,
    SHARD_SCALE,
    Limits,
    channel_scale_limit,
    least_scale,
)
from comparator.diagnosis.measures import (
    NEVER_RELEVANT,
    NOTHING,
    ChannelNumbers,
    Difference,
    Irrelevance,
    change_of_scale,
    channel_weights,
    channels,
    normalise,
    offset,
    sample_of,
    scale,
)
from comparator.diagnosis.operands import Operands, beyond_chance
from comparator.diagnosis.routing import standing_out
from comparator.diagnosis.tap_graph import TapNode
from comparator.diagnosis.tap_profile import FirstDifference, GroupScale, Nonfinite, TapProfile
from comparator.diagnosis.tap_rows import Float, Integer, Mask, RowLabels, Single, TapRows, groups_of, has_whole_prefix
from tensortap.distinct import distinct

COMMON_HEAD_SIZES = (32, 64, 128, 256)
FEWEST_ROWS = 6
"""With fewer rows only errors of rows and bits are looked at."""
FIRST_CHANNELS = 256
"""Of a row that differs so many are looked at first."""
CHANNEL_Z = 16.0
"""Significance of a channel's factor: rows count as independent there, which they are not behind an attention."""
SPREAD = 0.6
"""Of errors of rows that are alike, over that of independent ones."""
NEAR = 0.6
"""Strength of a test up to which it does not matter how many rows have independent errors."""
LARGEST_Z = 12.0
"""More significance than the test of any factor asks for, corrected for up to 10^9 taps (``strengths.critical``)."""


def measure(tap: TapRows, node: TapNode) -> TapProfile:
    """Measure one tap of a pair. ``node`` says what the tap computes and from what.

    Never raises for values: NaN, infinities, empty, constant or zero tensors have defined numbers. Raises ValueError
    when both sides do not have the same shape ``(rows, channels)`` or the labels another number of rows.
    """
    baseline, target, labels = tap.values.baseline, tap.values.target, tap.values.labels
    if baseline.ndim != 2 or baseline.shape != target.shape or len(labels) != len(baseline):
        raise ValueError(
            f"{tap.key.label}: expected two arrays of rows × channels and a label per row, got {list(baseline.shape)}, "
            f"{list(target.shape)} and {len(labels)} labels"
        )
    matrices = Matrices(baseline, target)
    look = tap.look or first_look(matrices)
    if not look.counts.differing.any():
        return _identical(tap, node, int(look.counts.baseline_nonfinite.sum()))
    return _Measuring(tap, node, matrices, look).profile(channel_weights(look.energy))


def _identical(tap: TapRows, node: TapNode, bad: int) -> TapProfile:
    values = tap.values
    zeros = np.zeros(len(values.labels))
    operation: Operation = node.operation
    if node.branch is not None and node.operation == "sum":
        operation = node.branch
    return TapProfile(
        key=tap.key,
        operation=operation,
        labels=values.labels,
        channel_count=values.baseline.shape[1],
        baseline_dtype=tap.baseline_dtype,
        target_dtype=tap.target_dtype,
        ranks=tap.ranks,
        reduction_length=tap.reduction_length,
        identical=True,
        different_rows=0,
        different_in_full_view=0,
        sequences_in_full_view=0,
        different_share=0.0,
        independent=math.inf,
        error=zeros,
        added=zeros,
        inherited=None,
        extra_floor=zeros,
        cosine=zeros,
        scale=NOTHING,
        raw_scale=NOTHING,
        offset=NOTHING,
        choices=choices_of(tap, node),
        tokens=tokens_of(tap, node),
        nonfinite=Nonfinite(bad, bad, 0),
    )


def _nonfinite(counts: Counts, labels: RowLabels) -> Nonfinite:
    rows = np.flatnonzero(counts.apart)
    return Nonfinite(
        int(counts.baseline_nonfinite.sum()),
        int(counts.target_nonfinite.sum()),
        int(counts.apart.sum()),
        labels.describe(int(rows[0])) if rows.size else None,
    )


def _whole_prefix(labels: RowLabels) -> Mask:
    return has_whole_prefix(labels) if labels.known else np.ones(len(labels), np.bool_)


def nearest_part(
    limits: Limits,
    found: ChannelNumbers | None,
    heads: Sequence[BlockNumbers],
    held: Sequence[BlockNumbers],
) -> float:
    """The strongest test of a part of the channels that has a limit for the size of an error."""
    strengths = [one.ratio / HEAD for one in heads] + [one.ratio / SHARD for one in held]
    if found is not None:
        strengths += [found.ratio / limits.channel, found.scaled_ratio / channel_scale_limit(limits)]
    return max(strengths, default=0.0)


def _alike(errors: Float, channel_count: int) -> bool:
    """Whether errors of rows have less of a spread than independent ones of so many channels have by chance."""
    mean = float(errors.mean()) if len(errors) else 0.0
    return mean > 0 and float(errors.std()) < SPREAD * mean / math.sqrt(2 * channel_count)


def _sequences(labels: RowLabels, rows: Mask) -> int:
    return len(distinct(labels.sequence[rows])) if labels.known else int(rows.any())


def _samples_of(groups: Mapping[str, Mask], kept: Mask | None = None) -> Mapping[str, tuple[Integer, Integer]]:
    """Of each group that has enough rows inside and outside samples of both, by their numbers among the rows that are
    ``kept``."""
    found = {}
    for name, mask in groups.items():
        inside = mask if kept is None else mask[kept]
        count = np.count_nonzero(inside)
        if min(count, len(inside) - count) >= FEWEST_ROWS:
            found[name] = sample_of(inside), sample_of(~inside)
    return found


@functools.lru_cache(1)
def _samples_of_groups(labels: RowLabels) -> Mapping[str, tuple[Integer, Integer]]:
    return _samples_of(groups_of(labels))


class _Measuring:
    def __init__(self, tap: TapRows, node: TapNode, matrices: Matrices, look: FirstLook) -> None:
        self.tap, self.node = tap, node
        self.labels = tap.values.labels
        self.counts, sums = look.counts, look.rows
        self.parts = look.parts
        self.nonfinite = Nonfinite() if look.finite else _nonfinite(look.counts, self.labels)
        finite = not (self.nonfinite.baseline or self.nonfinite.target)
        self.matrices, self.sums = replace(matrices, finite=finite), sums
        """Without weights."""

    def profile(self, weights: Single | None) -> TapProfile:
        tap, counts = self.tap, self.counts
        value = replace(self.matrices, weights=weights)
        sums = self.sums if weights is None else row_sums(value)
        part = Operands(tap, self.node, value, sums).part()
        floor = self._floor(part.operation)
        added = part.sums.error if part.sizes is part.sums.sizes else relative(part.sums.added, part.sizes)
        kept = np.ones(len(added), np.bool_)
        if part.operation in ("moe", "combine"):
            kept = ~standing_out(added) if standing_out(added).mean() < 0.5 else kept
        known = self.parts if part.matrices is value and weights is None else ()
        difference = normalise(part.matrices, part.sums, part.sizes, floor, kept, known, added)
        few = difference.rows < FEWEST_ROWS
        of_channels = channels(difference, floor / 2, CHANNEL_Z)
        sizes = self._irrelevant(part.operation, of_channels)
        different = counts.differing > 0
        in_full_view = different & _whole_prefix(self.labels)
        different_rows = int(np.count_nonzero(different))
        heads = self._blocks(difference, floor / 2, sizes["head"])
        held = self._shards(difference, floor / 2, sizes["shard"])
        common = NOTHING if few else scale(difference, irrelevant=sizes["scale"])
        limits = LIMITS[part.operation]
        near = max(
            nearest_part(limits, of_channels, heads, held),
            abs(common.value) / max(2 * limits.scale * median(added), TINY),
        )
        channel_count = self.matrices.shape[1]
        return TapProfile(
            key=tap.key,
            operation=part.operation,
            labels=self.labels,
            channel_count=channel_count,
            baseline_dtype=tap.baseline_dtype,
            target_dtype=tap.target_dtype,
            ranks=tap.ranks,
            reduction_length=tap.reduction_length,
            identical=False,
            different_rows=different_rows,
            different_in_full_view=int(np.count_nonzero(in_full_view)),
            sequences_in_full_view=_sequences(self.labels, in_full_view),
            different_share=int(counts.differing.sum()) / (different_rows * channel_count),
            independent=independent_rows(difference) if near > NEAR or _alike(added, channel_count) else math.inf,
            error=added if tap.key.is_gradient else sums.error,
            added=added,
            inherited=part.inherited,
            extra_floor=part.extra_floor,
            cosine=beyond_chance(part.sums.cosine, channel_count),
            scale=common,
            # Nothing is made of its significance.
            raw_scale=NOTHING if few else scale(self._raw(difference, part.sizes), irrelevant=NEVER_RELEVANT),
            offset=NOTHING if few else offset(difference),
            group_scales=() if few else self._group_scales(difference, kept, sizes["group"]),
            channels=of_channels,
            blocks=heads,
            shards=held,
            experts=experts_of(tap, difference, kept, sizes["expert"]) if part.operation in ("moe", "combine") else (),
            residuals=part.residuals,
            choices=choices_of(tap, self.node),
            tokens=tokens_of(tap, self.node),
            nonfinite=self.nonfinite,
            first_difference=self._first_difference(int(np.argmax(different))),
            zero=(not self.sums.baseline.any(), not self.sums.target.any()),
        )

    def _floor(self, operation: Operation, length: int | None = None) -> float:
        tap, node = self.tap, self.node
        return floor_for(
            operation,
            tap.baseline_dtype,
            tap.target_dtype,
            ranks=tap.ranks,
            length=length,
            quantisation=node.quantisation,
        ).floor

    def _irrelevant(self, operation: Operation, found: ChannelNumbers | None) -> Mapping[str, Irrelevance]:
        """Per kind of factor when its significance decides nothing, since a channel's error is a stronger test, or
        since nobody could doubt it."""
        limits, tap = LIMITS[operation], self.tap
        strength = 0.0 if found is None else found.ratio / limits.channel
        floor = self._floor(operation, tap.reduction_length)
        least = least_scale(operation, tap.baseline_dtype, tap.target_dtype)
        shares = {
            "scale": limits.scale,
            "group": limits.group_scale,
            "head": HEAD_SCALE,
            "shard": SHARD_SCALE,
            "expert": EXPERT_SCALE,
        }
        return {
            kind: Irrelevance(strength, max(share * floor / 2, least) / 2, LARGEST_Z) for kind, share in shares.items()
        }

    def _raw(self, difference: Difference, sizes: Float) -> Difference:
        """Of the value itself, without weights of channels: ``difference``, with its ``sizes``, where it is that."""
        plain = self.sums.sizes
        is_plain = difference.sums is self.sums and difference.rows == len(plain)
        is_plain = is_plain and (sizes is plain or np.array_equal(sizes, plain))
        # Where most rows differ the floor is not asked for.
        differs = int(np.count_nonzero(difference.error))
        return difference if is_plain and 2 * differs > len(plain) else normalise(self.matrices, self.sums, plain)

    def _first_difference(self, row: int) -> FirstDifference:
        sides = [side[row] for side in (self.tap.values.baseline, self.tap.values.target)]
        for some in (slice(FIRST_CHANNELS), slice(None)):
            left, right = (to_single(side[some]) for side in sides)
            differs = ~((left == right) | (np.isnan(left) & np.isnan(right)))
            channel = int(np.argmax(differs))
            if differs[channel]:
                break
        return FirstDifference(self.labels.describe(row), channel, float(left[channel]), float(right[channel]))

    def _group_scales(self, difference: Difference, kept: Mask, irrelevant: Irrelevance) -> tuple[GroupScale, ...]:
        samples = _samples_of_groups(self.labels) if kept.all() else _samples_of(groups_of(self.labels), kept)
        return tuple(
            GroupScale(name, change_of_scale(difference, inside, outside, irrelevant))
            for name, (inside, outside) in samples.items()
        )

    def _blocks(self, difference: Difference, floor: float, irrelevant: Irrelevance) -> tuple[BlockNumbers, ...]:
        if self.node.operation != "attention":
            return ()
        sizes: Sequence[int] = (self.tap.head_size,) if self.tap.head_size else COMMON_HEAD_SIZES
        found = (blocks(difference, size, floor, irrelevant) for size in sizes)
        return tuple(one for one in found if one is not None)

    def _shards(self, difference: Difference, floor: float, irrelevant: Irrelevance) -> tuple[BlockNumbers, ...]:
        found = (shards(difference, count, floor, irrelevant) for count in self.tap.shards)
        return tuple(one for one in found if one is not None)

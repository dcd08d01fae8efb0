"""Measure one tap: from the rows of both sides to the numbers that the diagnosis needs. Tensors end here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from comparator.diagnosis.chosen import choices_of, experts_of, tokens_of
from comparator.diagnosis.floors import Operation, floor_for
from comparator.diagnosis.measures import (
    NOTHING,
    BlockNumbers,
    Difference,
    alignment,
    blocks,
    channel_weights,
    channels,
    normalise,
    normalise_sample,
    offset,
    relative,
    scale,
    shards,
)
from comparator.diagnosis.routing import standing_out
from comparator.diagnosis.rows import Mask, RowLabels, Single, TapRows, groups_of, has_whole_prefix
from comparator.diagnosis.sums import Operands, Weighted
from comparator.diagnosis.tap_profile import FirstDifference, GroupScale, Nonfinite, TapProfile
from comparator.diagnosis.taps import TapNode

COMMON_HEAD_SIZES = (32, 64, 128, 256)
FEWEST_ROWS = 6
"""With fewer rows only errors of rows and bits are looked at."""
CHANNEL_Z = 16.0
"""Significance of a channel's factor: rows count as independent there, which they are not behind an attention."""


def profile(tap: TapRows, node: TapNode) -> TapProfile:
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
    same = (baseline == target) | (np.isnan(baseline) & np.isnan(target))
    if same.all() or not baseline.size:
        return _identical(tap, node)
    nonfinite, baseline, target = _finite(baseline, target, labels)
    return _Measuring(tap, node, baseline, target).profile(same, nonfinite)


def _identical(tap: TapRows, node: TapNode) -> TapProfile:
    values = tap.values
    bad = 0 if np.isfinite(values.baseline.sum(dtype=np.float64)) else int((~np.isfinite(values.baseline)).sum())
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
        different_share=0.0,
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


def _finite(baseline: Single, target: Single, labels: RowLabels) -> tuple[Nonfinite, Single, Single]:
    """Count what is not finite, and both sides with 0 in those places."""
    left, right = np.isfinite(baseline), np.isfinite(target)
    bad = ~(left & right)
    if not bad.any():
        return Nonfinite(), baseline, target
    agree = (np.isnan(baseline) & np.isnan(target)) | (baseline == target)
    apart = bad & ~agree
    rows = np.flatnonzero(apart.any(1))
    found = Nonfinite(
        int((~left).sum()), int((~right).sum()), int(apart.sum()), labels.describe(int(rows[0])) if rows.size else None
    )
    return found, np.where(bad, np.float32(0), baseline), np.where(bad, np.float32(0), target)


def _whole_prefix(labels: RowLabels) -> Mask:
    return has_whole_prefix(labels) if labels.known else np.ones(len(labels), np.bool_)


class _Measuring:
    def __init__(self, tap: TapRows, node: TapNode, baseline: Single, target: Single) -> None:
        self.tap, self.node = tap, node
        self.baseline, self.target = baseline, target
        self.labels = tap.values.labels

    def profile(self, same: Mask, nonfinite: Nonfinite) -> TapProfile:
        weights = channel_weights(self.baseline, self.target).astype(np.float32)
        value = Weighted.of(self.baseline, self.target, weights)
        error = relative(value.added, value.sizes)
        part = Operands(self.tap, self.node, self.baseline, self.target).part(weights, value)
        floor = floor_for(part.operation, self.tap.baseline_dtype, self.tap.target_dtype, ranks=self.tap.ranks).floor
        added = relative(part.added, part.sizes)
        routed = choices_of(self.tap, self.node)
        kept = np.ones(len(error), np.bool_)
        if part.operation in ("moe", "combine"):
            kept = ~standing_out(added) if standing_out(added).mean() < 0.5 else kept
        rows = slice(None) if kept.all() else kept
        difference = normalise(part.middle[rows], part.added[rows], part.sizes[rows], floor)
        few = difference.rows < FEWEST_ROWS
        different = ~same.all(1)
        first_row = int(np.argmax(different))
        first_channel = int(np.argmax(~same[first_row]))
        return TapProfile(
            key=self.tap.key,
            operation=part.operation,
            labels=self.labels,
            channel_count=self.baseline.shape[1],
            baseline_dtype=self.tap.baseline_dtype,
            target_dtype=self.tap.target_dtype,
            ranks=self.tap.ranks,
            reduction_length=self.tap.reduction_length,
            identical=False,
            different_rows=int(different.sum()),
            different_in_full_view=int((different & _whole_prefix(self.labels)).sum()),
            different_share=float((~same[different]).mean()),
            error=error,
            added=added,
            inherited=part.inherited,
            extra_floor=part.extra_floor,
            cosine=alignment(part.middle, part.added),
            scale=NOTHING if few else scale(difference),
            raw_scale=NOTHING if few else scale(normalise_sample(self.baseline, self.target)),
            offset=NOTHING if few else offset(difference),
            group_scales=() if few else self._group_scales(difference, kept),
            channels=channels(difference, floor / 2, CHANNEL_Z),
            blocks=self._blocks(difference, floor / 2),
            shards=self._shards(difference, floor / 2),
            experts=experts_of(self.tap, difference, kept) if part.operation in ("moe", "combine") else (),
            residuals=part.residuals,
            choices=routed,
            tokens=tokens_of(self.tap, self.node),
            nonfinite=nonfinite,
            first_difference=FirstDifference(
                self.labels.describe(first_row),
                first_channel,
                float(self.tap.values.baseline[first_row, first_channel]),
                float(self.tap.values.target[first_row, first_channel]),
            ),
            zero=(not self.baseline.any(), not self.target.any()),
        )

    def _group_scales(self, difference: Difference, kept: Mask) -> tuple[GroupScale, ...]:
        found = []
        for name, mask in groups_of(self.labels).items():
            inside = mask[kept]
            if min(inside.sum(), (~inside).sum()) >= FEWEST_ROWS:
                change = scale(difference, inside).minus(scale(difference, ~inside))
                found.append(GroupScale(name, change))
        return tuple(found)

    def _blocks(self, difference: Difference, floor: float) -> tuple[BlockNumbers, ...]:
        if self.node.operation != "attention":
            return ()
        sizes: Sequence[int] = (self.tap.head_size,) if self.tap.head_size else COMMON_HEAD_SIZES
        found = (blocks(difference, size, floor) for size in sizes)
        return tuple(one for one in found if one is not None)

    def _shards(self, difference: Difference, floor: float) -> tuple[BlockNumbers, ...]:
        found = (shards(difference, count, floor) for count in self.tap.shards)
        return tuple(one for one in found if one is not None)

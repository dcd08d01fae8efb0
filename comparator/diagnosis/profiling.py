"""Measure one tap: from the rows of both sides to the numbers that the diagnosis needs. Tensors end here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from comparator.diagnosis.floors import Operation, floor_for, rounding_error
from comparator.diagnosis.measures import (
    NOTHING,
    BlockNumbers,
    ChannelNumbers,
    Difference,
    Estimate,
    alignment,
    blocks,
    channel_weights,
    channels,
    midpoint,
    normalise,
    offset,
    relative,
    row_sizes,
    scale,
)
from comparator.diagnosis.routing import COMMON_TOP_K, Choices, choices, chosen, standing_out
from comparator.diagnosis.rows import (
    Float,
    Mask,
    RowLabels,
    SideRows,
    Single,
    TapKey,
    TapRows,
    groups_of,
    join_rows,
)
from comparator.diagnosis.sums import Operands, Residuals
from comparator.diagnosis.taps import TapNode
from comparator.diagnosis.tokens import TokenChoices, choose_tokens

COMMON_HEAD_SIZES = (32, 64, 128, 256)
LARGE = np.float32(1e9)
"""Stands for an infinite logit."""
FEWEST_ROWS = 6
"""With fewer rows only errors of rows and bits are looked at."""
CHANNEL_Z = 16.0
"""Significance of a channel's factor: rows count as independent there, which they are not behind an attention."""


@dataclass(frozen=True)
class GroupScale:
    """The factor of a group of rows less that of the others."""

    group: str
    scale: Estimate


@dataclass(frozen=True)
class ExpertNumbers:
    expert: int
    rows: int
    scale: Estimate
    """Factor of its rows less that of the others."""


@dataclass(frozen=True)
class Nonfinite:
    """NaN and infinities. Where both sides have the same one at a place, they agree."""

    baseline: int = 0
    target: int = 0
    apart: int = 0
    """Places where only one side has it, or each another."""
    first: str | None = None
    """The first row with one that is not on the other side as well."""


@dataclass(frozen=True)
class FirstDifference:
    """The first element, in order of rows and channels, that is not the same on both sides."""

    row: str
    channel: int
    baseline: float
    target: float


@dataclass(frozen=True, eq=False)
class TapProfile:
    """Numbers of one tap. Arrays have shape ``(rows,)`` and follow ``labels``."""

    key: TapKey
    operation: Operation
    labels: RowLabels
    channel_count: int
    baseline_dtype: str
    target_dtype: str
    ranks: int
    reduction_length: int | None
    identical: bool
    """Equal in every bit that the dtype can show (NaN equals NaN)."""
    different_rows: int
    """Rows with an element that differs."""
    different_share: float
    """Share of the elements of those rows that differ."""
    error: Float
    """Relative L2 error of each row."""
    added: Float
    """Error that the operation itself is asked for: of a sum what is left after its operands' errors, of an operand
    that was not recorded the error of the difference; else ``error``."""
    inherited: Float | None
    """Error of the summed operands, where the sum is none (a norm in between); else None, and the graph gives it."""
    extra_floor: Float
    """Relative rounding error of a difference of two recorded values, beside the operation's floor."""
    cosine: Float
    scale: Estimate
    raw_scale: Estimate
    """Without the shrinking of outlier channels."""
    offset: Estimate
    group_scales: tuple[GroupScale, ...] = ()
    channels: ChannelNumbers | None = None
    blocks: tuple[BlockNumbers, ...] = ()
    experts: tuple[ExpertNumbers, ...] = ()
    residuals: Residuals | None = None
    choices: tuple[Choices, ...] = ()
    """Under the known number of experts per token, or under each common one."""
    tokens: TokenChoices | None = None
    """Of logits: the tokens that they choose."""
    nonfinite: Nonfinite = field(default_factory=Nonfinite)
    first_difference: FirstDifference | None = None
    zero: tuple[bool, bool] = (False, False)
    """Whether all of the baseline, of the target, is zero although the other is not."""

    @property
    def rows(self) -> int:
        return len(self.error)


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
        different_share=0.0,
        error=zeros,
        added=zeros,
        inherited=None,
        extra_floor=zeros,
        cosine=zeros,
        scale=NOTHING,
        raw_scale=NOTHING,
        offset=NOTHING,
        choices=_choices(tap, node),
        tokens=_tokens(tap, node),
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


class _Measuring:
    def __init__(self, tap: TapRows, node: TapNode, baseline: Single, target: Single) -> None:
        self.tap, self.node = tap, node
        self.baseline, self.target = baseline, target
        self.labels = tap.values.labels

    def profile(self, same: Mask, nonfinite: Nonfinite) -> TapProfile:
        weights = channel_weights(self.baseline, self.target).astype(np.float32)
        left, right = self.baseline * weights, self.target * weights
        error = relative(right - left, row_sizes(left, right))
        part = Operands(self.tap, self.node, self.baseline, self.target).part(weights)
        floor = floor_for(part.operation, self.tap.baseline_dtype, self.tap.target_dtype, ranks=self.tap.ranks).floor
        added = relative(part.added, part.sizes)
        routed = _choices(self.tap, self.node)
        kept = np.ones(len(error), np.bool_)
        if part.operation in ("moe", "combine"):
            kept = ~standing_out(added) if standing_out(added).mean() < 0.5 else kept
        difference = normalise(part.middle[kept], part.added[kept], part.sizes[kept])
        few = difference.rows < FEWEST_ROWS
        raw = normalise(
            midpoint(self.baseline, self.target), self.target - self.baseline, row_sizes(self.baseline, self.target)
        )
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
            different_share=float((~same[different]).mean()),
            error=error,
            added=added,
            inherited=part.inherited,
            extra_floor=part.extra_floor,
            cosine=alignment(normalise(part.middle, part.added, part.sizes)),
            scale=NOTHING if few else scale(difference),
            raw_scale=NOTHING if few else scale(raw),
            offset=NOTHING if few else offset(difference),
            group_scales=() if few else self._group_scales(difference, kept),
            channels=channels(difference, floor / 2, CHANNEL_Z),
            blocks=self._blocks(difference, floor / 2),
            experts=self._experts(difference, kept) if part.operation in ("moe", "combine") else (),
            residuals=part.residuals,
            choices=routed,
            tokens=_tokens(self.tap, self.node),
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
                change = scale(difference.take(inside)).minus(scale(difference.take(~inside)))
                found.append(GroupScale(name, change))
        return tuple(found)

    def _blocks(self, difference: Difference, floor: float) -> tuple[BlockNumbers, ...]:
        if self.node.operation != "attention":
            return ()
        sizes: Sequence[int] = (self.tap.head_size,) if self.tap.head_size else COMMON_HEAD_SIZES
        found = (blocks(difference, size, floor) for size in sizes)
        return tuple(one for one in found if one is not None)

    def _experts(self, difference: Difference, kept: Mask) -> tuple[ExpertNumbers, ...]:
        router = self.tap.router
        if router is None:
            return ()
        here, there = join_rows(self.labels, router.labels)
        if len(here) < len(self.labels):
            return ()
        top_k = self.tap.top_k or 2
        users = chosen(router.baseline[there], top_k) & chosen(router.target[there], top_k)
        others = ~(chosen(router.baseline[there], max(top_k, 2)) | chosen(router.target[there], max(top_k, 2)))
        users, others = users[kept], others[kept]
        found = []
        for expert in range(users.shape[1]):
            mine, rest = users[:, expert], others[:, expert]
            if min(mine.sum(), rest.sum()) < 4:
                continue
            change = scale(difference.take(mine)).minus(scale(difference.take(rest)))
            found.append(ExpertNumbers(expert, int(mine.sum()), change))
        return tuple(found)


def _tokens(tap: TapRows, node: TapNode) -> TokenChoices | None:
    values = tap.values
    if node.operation != "logits" or not values.baseline.size:
        return None
    # Masked tokens are minus infinity, and NaN chooses nothing.
    baseline, target = (
        np.clip(np.where(np.isnan(side), -LARGE, side), -LARGE, LARGE) for side in (values.baseline, values.target)
    )
    return choose_tokens(baseline, target, max(tap.baseline_dtype, tap.target_dtype, key=rounding_error))


def _choices(tap: TapRows, node: TapNode) -> tuple[Choices, ...]:
    router: SideRows | None = tap.values if node.operation == "router" else tap.router
    if router is None:
        return ()
    labels = tap.values.labels
    here, there = join_rows(labels, router.labels)
    if len(here) < len(labels):
        return ()
    left, right = np.nan_to_num(router.baseline[there]), np.nan_to_num(router.target[there])
    experts = left.shape[1]
    candidates = (tap.top_k,) if tap.top_k else tuple(k for k in COMMON_TOP_K if k <= experts // 2)
    coarser = max(tap.baseline_dtype, tap.target_dtype, key=rounding_error)
    return tuple(choices(left, right, k, coarser) for k in candidates)

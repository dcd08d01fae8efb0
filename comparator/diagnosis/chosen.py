"""What the logits of a tap choose: experts, from the router's logits beside it, and tokens."""

from __future__ import annotations

import numpy as np

from comparator.diagnosis.expert_scores import PLAIN
from comparator.diagnosis.floors import rounding_error
from comparator.diagnosis.kernel import to_single
from comparator.diagnosis.measures import RELEVANT, Difference, Irrelevance, change_of_scale, sample_of
from comparator.diagnosis.routing import COMMON_TOP_K, Choices, choices, chosen
from comparator.diagnosis.tap_graph import LOGITS, TapNode
from comparator.diagnosis.tap_profile import ExpertNumbers
from comparator.diagnosis.tap_rows import Mask, SideRows, TapRows, join_rows
from comparator.diagnosis.tokens import TokenChoices, choose_tokens, joined
from tensortap.lazy_rows import pieces

LARGE = np.float32(1e9)
"""Stands for an infinite logit."""
FEWEST_USERS = 4


def experts_of(
    tap: TapRows, difference: Difference, kept: Mask, irrelevant: Irrelevance = RELEVANT
) -> tuple[ExpertNumbers, ...]:
    """The factor of each expert's rows less that of the others; ``kept`` are the rows of ``difference``."""
    router, selection = tap.router, tap.selection or PLAIN
    if router is None or not selection.known:
        return ()
    labels = tap.values.labels
    here, there = join_rows(labels, router.labels)
    if len(here) < len(labels):
        return ()
    top_k = tap.top_k or 2
    left, right = router.single()
    sides = ((left[there], selection.baseline_bias), (right[there], selection.target_bias))
    wider = [chosen(logits, max(top_k, 2), selection, bias) for logits, bias in sides]
    narrow = [chosen(logits, top_k, selection, bias) for logits, bias in sides]
    users, others = (narrow[0] & narrow[1])[kept], ~(wider[0] | wider[1])[kept]
    found = []
    for expert in range(users.shape[1]):
        mine, rest = users[:, expert], others[:, expert]
        if min(mine.sum(), rest.sum()) < FEWEST_USERS:
            continue
        change = change_of_scale(difference, sample_of(mine), sample_of(rest), irrelevant)
        found.append(ExpertNumbers(expert, int(mine.sum()), change))
    return tuple(found)


def tokens_of(tap: TapRows, node: TapNode) -> TokenChoices | None:
    """The tokens that logits choose; None for other taps."""
    values = tap.values
    # Where nothing but logits was recorded, nothing is known of what they are computed from.
    if (node.operation != "logits" and tap.key.name != LOGITS) or not values.baseline.size:
        return None
    coarser = max(tap.baseline_dtype, tap.target_dtype, key=rounding_error)
    found = []
    for rows in pieces(values.baseline, values.target):
        singles = (to_single(side[rows]) for side in (values.baseline, values.target))
        # Masked tokens are minus infinity, and NaN chooses nothing.
        baseline, target = (np.clip(np.where(np.isnan(side), -LARGE, side), -LARGE, LARGE) for side in singles)
        found.append(choose_tokens(baseline, target, coarser))
    return found[0] if len(found) == 1 else joined(found)


def choices_of(tap: TapRows, node: TapNode) -> tuple[Choices, ...]:
    """The choice of experts under the known number of them, or under each common one; empty where nothing tells."""
    router: SideRows | None = tap.values if node.operation == "router" else tap.router
    selection = tap.selection or PLAIN
    if router is None or not selection.known:
        return ()
    labels = tap.values.labels
    here, there = join_rows(labels, router.labels)
    if len(here) < len(labels):
        return ()
    left, right = (np.nan_to_num(side[there]) for side in router.single())
    experts = left.shape[1]
    candidates = (tap.top_k,) if tap.top_k else tuple(k for k in COMMON_TOP_K if k <= experts // 2)
    coarser = max(tap.baseline_dtype, tap.target_dtype, key=rounding_error)
    return tuple(choices(left, right, k, coarser, selection) for k in candidates)

"""Joining tokens in the order in which they were computed: ``per_step`` and ``concat_steps``."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.plan.tokens import one_sided
from comparator.plan.tokens.interface import TokenPlan
from comparator.plan.tokens.part_tokens import PartTokens, in_order_of_steps
from comparator.plan.tokens.pass_rows import NO_TOKEN_ID, UNKNOWN_ROW, RowTokens, blank_rows, join_rows
from dumper.layout import PADDING_ROW

_SMART = "--token-aligner smart joins the runs on token identity, whatever their steps are"


class Line(Struct, frozen=True, eq=False):
    """The real rows of one side in the order of computation. All arrays have shape ``(tokens,)``."""

    indices: npt.NDArray[np.int64]
    """Into the rows of all parts."""
    sequence: npt.NDArray[np.int32]
    """Index of the sequence in its pass; negative when not known."""
    position: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]
    dropped: int
    """Padding and dummy rows."""
    known: bool
    """False when some part has no token layout: its rows are then all taken, as they are."""
    sequences_at_once: int
    """The most sequences in one pass."""


def line_of(parts: list[PartTokens]) -> Line:
    """The real rows by step, then data-parallel rank, then sequence in the batch, then position."""
    indices, tokens = [np.zeros(0, np.int64)], []
    dropped, most, known = 0, 0, True
    for _, of_step in groupby(in_order_of_steps(parts), key=lambda found: found.part.step):
        step_parts = list(of_step)
        if any(found.tokens is None for found in step_parts):
            known = False
            for found in step_parts:
                indices.append(found.indices)
                tokens.append(_anonymous(found.part.rows))
            continue
        rows = join_rows([found.tokens for found in step_parts if found.tokens is not None])
        places = np.concatenate([found.indices for found in step_parts])
        real = np.flatnonzero(rows.sequence != PADDING_ROW)
        dropped += len(rows) - len(real)
        rows, places = rows.take(real), places[real]
        order = np.lexsort((rows.position, rows.sequence, rows.source))
        rows = rows.take(order)
        indices.append(places[order])
        tokens.append(rows)
        if len(rows):
            # In their order a sequence begins where another one ends.
            begins = (rows.source[1:] != rows.source[:-1]) | (rows.sequence[1:] != rows.sequence[:-1])
            most = max(most, 1 + int(np.count_nonzero(begins)))
    joined = join_rows(tokens)
    return Line(np.concatenate(indices), joined.sequence, joined.position, joined.token, dropped, known, most)


def plan_ordered(baseline: list[PartTokens], target: list[PartTokens], *, one_step: bool) -> TokenPlan:
    """Join two sides row by row, cut to the shorter one.

    What is cut is counted: in ``concat_steps`` as the other side's end, in ``per_step`` as missing tokens.
    """
    one, other = line_of(baseline), line_of(target)
    matched = min(len(one.indices), len(other.indices))
    reason = one_sided.MISSING_ROWS if one_step else one_sided.CUT
    notes = []
    if not (one.known and other.known):
        notes.append("rows without a token layout are taken as they are, padding included")
    if not one_step and max(one.sequences_at_once, other.sequences_at_once) > 1:
        notes.append(
            "several sequences in one pass: concat_steps joins tokens in the order of computation, which is the "
            "same on both sides only when batches are; --token-aligner smart joins them by identity"
        )
    differing = _differing_ids(one, other, matched)
    other_tokens: tuple[str, ...] = ()
    if differing is not None:
        other_tokens = (
            f"token ids differ from joined token {differing} on (position {int(one.position[differing])}: "
            f"{int(one.token[differing])} in the baseline, {int(other.token[differing])} in the target): "
            f"what follows is not the same tokens; {_SMART}",
        )
    error = None
    if not matched and len(one.indices) != len(other.indices):
        empty = "baseline" if not len(one.indices) else "target"
        have = "target" if empty == "baseline" else "baseline"
        error = (
            f"nothing to compare in the token dimension: the {have} has {max(len(one.indices), len(other.indices))} "
            f"tokens of it here and the {empty} none but padding; {_SMART}"
        )
    identities = one.known and bool((one.sequence[:matched] >= 0).all())
    return TokenPlan(
        baseline=_unless_all(one.indices[:matched], baseline),
        target=_unless_all(other.indices[:matched], target),
        matched=matched,
        only_baseline=_count(reason.format(side="target"), len(one.indices) - matched),
        only_target=_count(reason.format(side="baseline"), len(other.indices) - matched),
        dropped_baseline=one.dropped,
        dropped_target=other.dropped,
        sequence=one.sequence[:matched] if identities else None,
        position=one.position[:matched] if identities else None,
        notes=tuple(notes),
        other_tokens=other_tokens,
        error=error,
    )


def _anonymous(rows: int) -> RowTokens:
    return blank_rows(rows, UNKNOWN_ROW)


def _differing_ids(one: Line, other: Line, matched: int) -> int | None:
    """The first joined row whose token ids are known on both sides and differ."""
    tokens, others = one.token[:matched], other.token[:matched]
    differs = (tokens != others) & (tokens != NO_TOKEN_ID) & (others != NO_TOKEN_ID)
    return int(differs.argmax()) if differs.any() else None


def _count(reason: str, tokens: int) -> dict[str, int]:
    return {reason: tokens} if tokens > 0 else {}


def _unless_all(indices: npt.NDArray[np.int64], parts: list[PartTokens]) -> npt.NDArray[np.int64] | None:
    """None when the indices are all rows in their own order."""
    rows = sum(found.part.rows for found in parts)
    if len(indices) == rows and np.array_equal(indices, np.arange(rows)):
        return None
    return indices

"""Why a token is on one side only."""

from __future__ import annotations

from typing import Final

NOT_RECORDED: Final = "not recorded in {side}"
"""Both sides computed the token, but this tensor has it on one side only."""

LAST_ROWS: Final = "{side} has the last row of each pass only"
"""One side's tensor has a row per sequence, such as logits, and its passes ended elsewhere."""

NO_LAYOUT: Final = "no token layout in {side} says which tokens they are"
"""Rows of a side whose layout is missing or does not fit them; the other side may have the same tokens."""

MISSING_ROWS: Final = "{side} has fewer tokens in this step"
"""Steps are compared one by one, and the same step holds more tokens on one side."""

CACHED_PREFIX: Final = "cached prefix in {side}"
ENDED_EARLIER: Final = "sequence ended earlier in {side}"
OTHER_STEPS: Final = "computed in steps of {side} that are not compared"
NOT_COMPUTED: Final = "not computed in {side}"
PARTED: Final = "after the token ids part"
DRAFTED: Final = "drafted and not confirmed"
UNDECIDED: Final = "several drafts in {side}, not known which was accepted"
NO_SEQUENCE: Final = "no such sequence in {side}"
NO_CONTINUATION: Final = "no such continuation in {side}"
"""Tokens of a sequence that begins behind a cached prefix: the text may have parted before it."""
REPEATED: Final = "repeats of sequences that {side} has fewer times"
CUT: Final = "cut to the shorter side ({side})"

_COUNTED = (NOT_RECORDED, NO_LAYOUT, MISSING_ROWS)


def counts_against(reason: str, *, cut: bool = True) -> bool:
    """Whether tokens with this reason were (or may have been) computed on both sides: not comparing them is a gap.

    ``cut``: whether rows that were cut to the shorter side are. The share of compared tokens is
    ``matched / (matched + the number of such tokens)``.
    """
    counted_ones = (*_COUNTED, CUT) if cut else _COUNTED
    return any(reason == counted.format(side=side) for counted in counted_ones for side in ("baseline", "target"))

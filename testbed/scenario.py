"""Which recorded layouts are compared, with which flags, and what comes out: shown by the demo, checked by tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison of two recorded layouts (see ``testbed.layouts.LAYOUTS``)."""

    baseline: str
    target: str
    flags: tuple[str, ...] = ()
    fault: str | None = None
    """The tensor at which the failures have to start, ``attn_output layer_id=1``; None where all have to pass."""


FIRST_STEP = ("--token-aligner", "concat_steps", "--end-step", "0", "--allow-failed-pattern", "mlp_output")
ALL_STEPS = ("--token-aligner", "concat_steps")
ROWS = (
    Row("tp1", "tp2"),
    Row("tp2", "tp4"),
    Row("tp2", "dp2", FIRST_STEP),
    Row("tp2", "dp2", ALL_STEPS),
)
FAULTY_ROWS = (Row("tp2", "tp2-scaled", fault="attn_output layer_id=1"),)
LONG_PROMPT_ROWS = (
    Row("long-tp1", "long-tp2"),
    Row("long-tp2", "long-tp2-scaled", fault="attn_output layer_id=1"),
)
"""64 tokens: roundings change which experts some of them go to, and a factor of 1.005 is all the fault there is."""

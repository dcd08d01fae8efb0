"""Which recorded layouts are compared, with which flags: the rows of the demo's table, which tests check too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison of two recorded layouts (see ``testbed.layouts.LAYOUTS``)."""

    baseline: str
    target: str
    flags: tuple[str, ...] = ()


FIRST_STEP = ("--token-aligner", "concat_steps", "--end-step", "0", "--allow-failed-pattern", "mlp_output")
ALL_STEPS = ("--token-aligner", "concat_steps")
ROWS = (
    Row("tp1", "tp2"),
    Row("tp2", "tp4"),
    Row("tp2", "dp2", FIRST_STEP),
    Row("tp2", "dp2", ALL_STEPS),
)

"""How large the error of a finding is, in multiples of what is tolerated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_LARGEST_REL = re.compile(r"\s*rel\s*<=\s*([0-9.eE+-]+)\s*")


def tolerance_of(judged: str, floor: float, inherited: float) -> float:
    """The relative L2 error that is tolerated at a tap: its floor, and where no fault comes in what its inputs explain
    too. Behind a fault what is inherited is the fault."""
    return math.hypot(floor, inherited) if judged == "within-rounding" else floor


def times_tolerance(finding: Mapping[str, Any]) -> float | None:
    """Error over tolerance, from the JSON of a finding; None where there is no such number.

    Of an analysed tap the relative L2 error of the pair over ``tolerance_of`` the tap; else ``rel`` over the limit of a
    criterion ``rel <= LIMIT``. What is the same on both sides is 0 times anything.
    """
    diff = finding.get("diff")
    if not isinstance(diff, Mapping):
        return 0.0 if finding.get("values_equal") else None
    if diff.get("max_abs_diff") == 0 and not diff.get("differing"):
        return 0.0
    analysis = finding.get("analysis")
    if isinstance(analysis, Mapping) and analysis.get("floor"):
        error = diff.get("relative_l2")
        tolerated = tolerance_of(analysis["judged"], analysis["floor"], analysis.get("inherited") or 0.0)
        return None if error is None else float(error) / tolerated
    limit = _LARGEST_REL.fullmatch(str(diff.get("predicate", "")))
    rel = diff.get("rel_diff")
    if limit is None or rel is None:
        return None
    try:
        largest = float(limit.group(1))
    except ValueError:
        return None
    return float(rel) / largest if largest > 0 else None

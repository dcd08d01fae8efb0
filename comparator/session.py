"""What stays the same from pair to pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comparator.match.pairs import Bundle, BundlePair
from comparator.options import Options
from comparator.plan.pair import SideContext
from comparator.plan.tokens.interface import Side, TokenAligner
from comparator.report.records import Location


@dataclass
class Session:
    """Everything that stays the same from pair to pair, and the count of failures shown in detail."""

    options: Options
    contexts: Mapping[Side, SideContext]
    aligner: TokenAligner
    detailed: int = 0

    def take_detail(self) -> bool:
        """Whether one more failure gets percentiles."""
        if self.detailed >= self.options.detail_limit >= 0:
            return False
        self.detailed += 1
        return True

    def dims(self, bundle: Bundle, name: str, side: Side) -> str | None:
        recorded = next((record.dims for record in bundle.records if record.dims), None)
        return self.options.dims_for(name, recorded, side)


def identity(pair: BundlePair) -> dict[str, Any]:
    """The fields by which a finding names its pair."""
    taps = (getattr(bundle.records[0], "tap", None) for bundle in (pair.target, pair.baseline) if bundle)
    return {
        "name": pair.name,
        "tags": {key: str(value) for key, value in pair.tags},
        "location": Location(step=pair.step),
        "tap": next((tap for tap in taps if tap), None),
    }

"""What the levels of records say of a pair: how it can be compared, and for level ``sample``, whose tensors hold the
rows that were kept and are described by no token layout, how rows go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from comparator.errors import PairError
from comparator.match.bundles import Bundle, BundlePair
from comparator.options import Side
from comparator.plan.tokens.interface import PartedSequence, RowsClass, RowsQuery, TokenPart, TokenPlan


def reduced_level(pair: BundlePair) -> str | None:
    """The level at which a pair of tensors is compared when it is not ``full`` on both sides.

    Raises PairError for levels that do not go together.
    """
    assert pair.baseline is not None
    assert pair.target is not None
    levels = {entry.record.level for entry in (*pair.baseline.entries, *pair.target.entries)}
    if levels <= {"full"}:
        return None
    if levels == {"sample"}:
        return "sample"
    if "hash" in levels and levels <= {"hash", "full"}:
        return "hash"
    if levels <= {"stats", "full"}:
        return "stats"
    raise PairError(
        f"it is recorded at levels that cannot be compared: {', '.join(sorted(levels))}",
        hint="record it at level full on both sides",
        name="levels-differ",
    )


def check_same_rows(baseline: Bundle, target: Bundle) -> None:
    """Raise PairError unless both sides kept the same rows."""
    rows = {entry.record.sampled_rows for entry in (*baseline.entries, *target.entries)}
    if len(rows) > 1:
        listed = ", ".join(sorted(map(str, rows)))
        raise PairError(
            f"the samples hold other rows: {listed}",
            hint="record it at level full, or with tensors of the same number of rows on both sides",
            name="samples-differ",
        )


class RowByRow:
    """Takes the rows of both sides as they are: samples say nothing about the tokens that are not in them."""

    def classify(self, query: RowsQuery) -> RowsClass:
        """Rows of a sample are not classified."""
        return RowsClass("unknown", reason="a sample of rows")

    def classify_steps(
        self,
        side: Side,
        rows: Mapping[int | None, tuple[tuple[int, int], ...]],
        split_axes: tuple[str, ...] = (),
        data_parallel_axis: str | None = None,
    ) -> dict[int | None, RowsClass]:
        """Rows of a sample are not classified."""
        return dict.fromkeys(rows, RowsClass("unknown", reason="a sample of rows"))

    def plan(self, baseline: tuple[TokenPart, ...], target: tuple[TokenPart, ...]) -> TokenPlan:
        """All rows of both sides, as they are."""
        return TokenPlan(None, None, min(sum(part.rows for part in side) for side in (baseline, target)))

    def encoded(self) -> Mapping[int, npt.NDArray[np.bool_]]:
        """Nothing is known of their rows."""
        return {}

    def token_ids(self) -> Sequence[npt.NDArray[np.int64]]:
        return ()

    def parted(self) -> tuple[PartedSequence, ...]:
        """Nothing is known of their sequences."""
        return ()

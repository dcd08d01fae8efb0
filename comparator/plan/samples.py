"""Records of level ``sample`` as tensors of the rows that were kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from comparator.errors import PairError
from comparator.match.pairs import Bundle
from comparator.match.runs import RecordView
from comparator.plan.tokens.interface import RowsClass, RowsQuery, Side, TokenPart, TokenPlan


class SampledRecord:
    """A record whose shape is that of the rows that were kept; everything else is the record's own."""

    def __init__(self, record: RecordView) -> None:
        self._record = record
        rows = getattr(record, "sampled_rows", None)
        shape = record.shape or ()
        self.shape: tuple[int, ...] = shape if rows is None else (len(rows), *shape[1:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    def array(self) -> npt.NDArray[Any]:
        return self._record.array()


def sampled(baseline: Bundle, target: Bundle) -> tuple[Bundle, Bundle]:
    """Both bundles with the shapes of their samples.

    Raises PairError when the sides did not keep the same rows.
    """
    rows = {getattr(record, "sampled_rows", None) for record in (*baseline.records, *target.records)}
    if len(rows) > 1:
        listed = ", ".join(sorted(map(str, rows)))
        raise PairError(
            f"the samples hold other rows: {listed}",
            hint="record it at level full, or with tensors of the same number of rows on both sides",
        )
    return _of(baseline), _of(target)


def _of(bundle: Bundle) -> Bundle:
    records: tuple[Any, ...] = tuple(SampledRecord(record) for record in bundle.records)
    return replace(bundle, records=records, history=records)


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

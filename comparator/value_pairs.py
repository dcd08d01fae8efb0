"""Compare a pair of bundles that hold values, not tensors."""

from __future__ import annotations

from typing import Any, Literal

from comparator.align.load import load_array
from comparator.errors import PairError
from comparator.match.pairs import Bundle, BundlePair
from comparator.measure.values import first_difference
from comparator.report.records import Note, ValueComparison
from comparator.session import Session, identity


def compare_values(pair: BundlePair, baseline: Bundle, target: Bundle, session: Session) -> ValueComparison:
    """Compare structurally; raises PairError when the ranks of a side hold other values."""
    left = _values(baseline, "baseline", session)
    right = _values(target, "target", session)
    left_value, right_value = left[0], right[0]
    found: tuple[str, str] | None = None
    if len(left) == len(right):
        for one, other in zip(left, right, strict=True):
            found = first_difference(one, other)
            if found:
                left_value, right_value = one, other
                break
    else:
        found = first_difference(left[0], right[0])
    infos = [] if found is None else [Note(kind="info", category="value", message=f"{found[0] or 'value'}: {found[1]}")]
    return ValueComparison(
        **identity(pair),
        category="passed" if found is None else "failed",
        baseline_value=repr(left_value),
        target_value=repr(right_value),
        baseline_type=type(left_value).__name__,
        target_type=type(right_value).__name__,
        values_equal=found is None,
        difference_path=None if found is None else found[0],
        infos=infos,
    )


def _values(bundle: Bundle, side: Literal["baseline", "target"], session: Session) -> list[Any]:
    """The value of a bundle: one when all ranks agree; raises PairError when ranks of one side do not."""
    records = sorted(bundle.records, key=lambda one: (one.step or 0, one.rank))
    values = [record.value if record.kind != "tensor" else load_array(record) for record in records]
    if session.options.first_value_only:
        return values[:1]
    by_step: dict[int | None, list[tuple[int, Any]]] = {}
    for record, value in zip(records, values, strict=True):
        by_step.setdefault(record.step, []).append((record.rank, value))
    kept: list[Any] = []
    for ranked in by_step.values():
        first_rank, first = ranked[0]
        kept.append(first)
        for rank, value in ranked[1:]:
            found = first_difference(first, value)
            if found:
                raise PairError(
                    f"ranks {first_rank} and {rank} of the {side} recorded other values: "
                    f"{found[0] or 'value'}: {found[1]}",
                    hint="compare rank by rank with --preset raw",
                )
    return kept

"""Several records of a tap in one step, and rows that stand for requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import comparator
from comparator.options import TokenMode
from dumper.layout import SequenceSpan, TokenLayout
from tests.comparator.fakes import FakeRecord, FakeRun, one_request, values

WHOLE = values(6, 4, 8)


def in_parts(lengths: list[int], dims: str = "b s h", wrong: int | None = None, **arguments: Any) -> FakeRun:
    parts = np.split(WHOLE, np.cumsum(lengths)[:-1])
    records = [
        FakeRecord("out", part * (3 if number == wrong else 1), dims=dims, tags={"layer_id": 0}, occurrence=number)
        for number, part in enumerate(parts)
    ]
    return FakeRun(records, **arguments)


@pytest.mark.parametrize("mode", ["per_step", "concat_steps"])
@pytest.mark.parametrize("lengths", [[3, 3], [1, 5], [2, 2, 2]])
def test_micro_batches_are_joined(mode: TokenMode, lengths: list[int]) -> None:
    report = comparator.compare(in_parts([6]), in_parts(lengths), token_aligner=mode)
    assert report.passed, report.describe()
    (account,) = report.accounts
    assert (account.baseline.compared, account.target.compared) == (24, 24)
    assert any(note.category == "records-joined" for note in report.findings[0].infos)
    faulty = comparator.compare(in_parts([6]), in_parts(lengths, wrong=1), token_aligner=mode)
    assert not faulty.passed


def test_micro_batches_of_other_sizes_on_both_sides() -> None:
    assert comparator.compare(in_parts([2, 4]), in_parts([3, 3])).passed
    assert not comparator.compare(in_parts([2, 4]), in_parts([3, 3], wrong=0)).passed


def test_equally_many_records_are_compared_one_by_one() -> None:
    report = comparator.compare(in_parts([3, 3]), in_parts([3, 3], wrong=1))
    assert [(one.label, one.category) for one in report] == [
        ("out layer_id=0", "passed"), ("out occurrence=1 layer_id=0", "failed"),
    ]  # fmt: skip


def test_a_record_too_many_is_no_agreement() -> None:
    extra = in_parts([3, 3])
    report = comparator.compare(FakeRun(extra.records[:1]), extra)
    assert not report.passed
    assert "12 target has fewer" not in report.describe()
    assert "12 baseline has fewer tokens in this step" in report.describe()


def test_what_has_no_token_dimension_is_not_joined() -> None:
    report = comparator.compare(in_parts([6], dims="x y z"), in_parts([3, 3], dims="x y z"))
    assert not report.passed
    assert [note.category for note in report.summary.errors] == ["partly-one-sided"]


def test_sharded_micro_batches_with_token_layouts() -> None:
    """Each micro batch is put together from its shards, and its rows are the next ones of the pass."""
    whole = values(5, 8)
    layouts = one_request([5])
    baseline = FakeRun([FakeRecord("x", whole, dims="t h[tp]")], {0: {"tp": (0, 1)}}, layouts)

    def target(fault: float) -> FakeRun:
        records = [
            FakeRecord("x", np.split(part * scale, 2, axis=1)[rank], rank, dims="t h[tp]", occurrence=number)
            for number, (part, scale) in enumerate(((whole[:2], 1), (whole[2:], fault)))
            for rank in range(2)
        ]
        both = {(0, rank): layouts[0, 0] for rank in range(2)}
        return FakeRun(records, {rank: {"tp": (rank, 2)} for rank in range(2)}, both)

    modes: list[TokenMode] = ["per_step", "concat_steps", "smart"]
    for mode in modes:
        report = comparator.compare(baseline, target(1), token_aligner=mode)
        assert report.passed, report.describe()
        faulty = comparator.compare(baseline, target(2), token_aligner=mode)
        assert "sequence 0, position 2" in str(faulty.summary.first_divergence)


def batch(order: list[int], states: npt.NDArray[Any], fault: int | None = None) -> FakeRun:
    """One prefill of three requests in some order, with a state for each."""
    prompts = [np.arange(10, 14), np.arange(20, 22), np.arange(30, 35)]
    spans = tuple(SequenceSpan(f"r{number}", 0, len(prompts[number])) for number in order)
    ids = np.concatenate([prompts[number] for number in order]).astype(np.int64)
    rows = np.stack([states[number] * (2 if number == fault else 1) for number in order])
    layout = TokenLayout("extend", spans, len(ids), ids)
    return FakeRun([FakeRecord("state", rows, dims="request h")], {}, {(0, 0): layout})


def test_values_per_request_are_aligned_by_request() -> None:
    states = values(3, 8)
    report = comparator.compare(batch([0, 1, 2], states), batch([2, 0, 1], states), token_aligner="smart")
    assert report.passed, report.describe()
    assert report.accounts[0].target.compared == 3
    faulty = comparator.compare(batch([0, 1, 2], states), batch([2, 0, 1], states, fault=1), token_aligner="smart")
    assert "sequence 1, position 1" in str(faulty.summary.first_divergence)


def grown(width: int) -> FakeRun:
    """Three passes of one request, each with what all tokens so far gave, and with rows that are heads."""
    layouts, records = {}, []
    for step, (start, count) in enumerate(((0, 4), (4, 1), (5, 1))):
        layouts[step, 0] = TokenLayout(
            "extend",
            (SequenceSpan("r", start, count),),
            count,
            np.arange(10 + start, 10 + start + count),
            batch_shape=(1, count),
        )
        records.append(FakeRecord("cached", values(1, 1, start + count, width), step=step))
        records.append(FakeRecord("heads", values(count * 3, width), step=step))
    return FakeRun(records, {}, layouts)


def test_what_spans_the_cache_or_has_heads_as_rows_says_what_to_do() -> None:
    report = comparator.compare(grown(8), grown(8), token_aligner="smart")
    text = report.describe()
    assert "no token dimension to join them along: without dims, its first dimension would have to be the rows" in text
    assert "Dimension 2 has another length in each pass, as where a tensor is made of all that is cached" in text

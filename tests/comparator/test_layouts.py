"""Whole comparisons of runs in memory whose dims, axes or ranks differ, or are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import comparator
from comparator.report.records import ErroredComparison
from tests.comparator.fakes import (
    TP1,
    TP2,
    FakeRecord,
    FakeRun,
    only,
    run_of,
    values,
)


def test_several_ranks_without_dims_are_an_error_with_a_hint() -> None:
    x = values(2, 2)
    finding = only(comparator.compare(run_of(x, dims=None), run_of(x, x, dims=None, parallel=TP2)))
    assert isinstance(finding, ErroredComparison)
    assert "ranks 0, 1 without dims" in finding.exception_message.replace("on ranks", "ranks")
    assert "--override-dims" in finding.hint
    assert not comparator.compare(run_of(x, dims=None), run_of(x, x, dims=None, parallel=TP2)).passed
    overridden = comparator.compare(
        run_of(x, dims=None), run_of(x, x, dims=None, parallel=TP2), override_dims=["x:t h # tp:replicated"]
    )
    assert overridden.passed
    raw = comparator.compare(
        run_of(x, x, dims=None, parallel=TP2), run_of(x, x, dims=None, parallel=TP2), grouping_skip_keys=frozenset()
    )
    assert raw.summary.passed == 2


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ("t", "name 1 dimension, but the tensor has 2"),
        ("t t", "'t' more than once"),
        ("t h[attention]", "unknown axis 'attention'"),
    ],
)
def test_bad_dims_concern_their_tensor_alone(dims: str, message: str) -> None:
    records = [FakeRecord("x", values(2, 2), dims=dims), FakeRecord("y", values(2, 2), dims="t h")]
    report = comparator.compare(FakeRun(records, TP1), FakeRun(records, TP1))
    assert [f.category for f in report] == ["errored", "passed"]
    assert message in report.findings[0].exception_message  # type: ignore[union-attr]
    assert not report.passed


def test_a_missing_rank_is_named() -> None:
    x = values(2, 4)
    target = run_of(x[:, :2], dims="t h[tp]", parallel={0: TP2[0]}, missing_ranks=(1,))
    report = comparator.compare(run_of(x, dims="t h[tp]", parallel=TP1), target)
    assert "tp rank 1 (of 2) is missing: the run has no file of rank 1" in report.describe()
    assert "no file of rank 1" in report.logs[0].errors[0].message


def test_other_dimension_names_fail_with_the_reason() -> None:
    x = values(2, 2)
    finding = only(comparator.compare(run_of(x), run_of(x, dims="t d")))
    assert finding.category == "failed"
    assert "the dimensions differ" in finding.errors[0].message


@pytest.mark.parametrize(
    ("left_dims", "right_dims", "move"),
    [
        ("b s h", "s b h", lambda x: x.transpose(1, 0, 2)),
        ("b s h", "t h", lambda x: x.reshape(6, 4)),
        ("b s (n*d)", "b s n d", lambda x: x.reshape(2, 3, 2, 2)),
        ("b s (n*d)", "t n d", lambda x: x.reshape(6, 2, 2)),
        ("b s h", "1 t h", lambda x: x.reshape(1, 6, 4)),
    ],
)
def test_axes_are_aligned(left_dims: str, right_dims: str, move: Any) -> None:
    x = values(2, 3, 4)
    left, right = run_of(x, dims=left_dims), run_of(move(x), dims=right_dims)
    assert comparator.compare(left, right).passed
    assert comparator.compare(right, left).passed
    spoiled = x.copy()
    spoiled[1, 2, 3] += 1
    assert not comparator.compare(run_of(spoiled, dims=left_dims), right).passed


def test_data_parallel_ranks_without_layouts() -> None:
    """Empty ranks hold nothing; the others are joined in the order of the ranks."""
    x = values(6, 4)
    places = {0: {"dp": (0, 2)}, 1: {"dp": (1, 2)}}
    both = run_of(x[:4], x[4:], parallel=places)
    assert comparator.compare(run_of(x), both).passed
    assert comparator.compare(run_of(x), run_of(x[:0], x, parallel=places)).passed
    assert not comparator.compare(run_of(x), run_of(x[4:], x[:4], parallel=places)).passed


@pytest.mark.parametrize("right_dims", ["t (heads*d)[tp]", "t heads[tp] d"])
def test_heads_that_neighbouring_ranks_share(right_dims: str) -> None:
    """Two heads of keys on four ranks: 0 and 1 hold the first, 2 and 3 the second."""
    keys = values(3, 2, 4)
    places = {rank: {"tp": (rank, 4)} for rank in range(4)}
    shape = (3, 1, 4) if "heads[" in right_dims else (3, 4)
    pieces = [keys[:, rank // 2].reshape(shape).copy() for rank in range(4)]
    baseline = run_of(keys.reshape(3, 8), dims="t (heads*d)[tp]", parallel=TP1)
    report = comparator.compare(baseline, run_of(*pieces, dims=right_dims, parallel=places))
    assert report.passed, report.describe()
    assert any("2 neighbouring tp ranks" in note.message for note in only(report).infos)
    pieces[3] = pieces[3] + np.float32(1)
    report = comparator.compare(baseline, run_of(*pieces, dims=right_dims, parallel=places))
    assert not report.passed
    assert not only(report).replicated_checks[-1].passed


def test_rank_by_rank_nothing_is_put_together() -> None:
    """With what only one rank recorded, too; runs of the same parallel layout need no more."""
    x = values(3, 8)
    keys = frozenset[str]()
    both = run_of(x[:, :4], x[:, 4:], dims="t h[tp]", parallel=TP2)
    report = comparator.compare(both, both, grouping_skip_keys=keys)
    assert [finding.tags["rank"] for finding in report.of("passed")] == ["0", "1"]
    first = run_of(x[:, :4], dims="t h[tp]", parallel=TP2)
    assert not comparator.compare(first, first).passed
    assert comparator.compare(first, first, grouping_skip_keys=keys).passed
    other = run_of(x[:, 4:], dims="t h[tp]", parallel=TP2)
    assert not comparator.compare(first, other, grouping_skip_keys=keys).passed


@pytest.mark.parametrize("dims", ["t vocab[tp]", "s b vocab[tp]"])
def test_a_vocabulary_that_is_padded_for_its_ranks_is_compared_without_the_padding(dims: str) -> None:
    logits = values(3, 6)
    padded = np.concatenate([logits, np.full((3, 4), 7, np.float32)], axis=1)
    pieces = [padded[:, :5], padded[:, 5:]]
    if dims.startswith("s"):
        pieces = [piece[:, None] for piece in pieces]
    baseline = run_of(logits, dims="t vocab")
    for left, right in (
        (baseline, run_of(*pieces, dims=dims, parallel=TP2)),
        (run_of(*pieces, dims=dims, parallel=TP2), baseline),
    ):
        report = comparator.compare(left, right)
        assert report.passed, report.describe()
        assert any("the first 6 are compared" in note.message for note in only(report).infos)
    pieces[1] = pieces[1] + np.float32(1)
    assert not comparator.compare(baseline, run_of(*pieces, dims=dims, parallel=TP2)).passed
    # Another name is no vocabulary, and half as many columns are no padding.
    assert not comparator.compare(run_of(logits), run_of(padded)).passed
    assert not comparator.compare(run_of(logits[:, :5], dims="t vocab"), run_of(padded, dims="t vocab")).passed

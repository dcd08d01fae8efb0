"""Whole comparisons on runs in memory: categories, exit codes, layouts, and what goes wrong."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

import comparator
import comparator.prepared
from comparator.match.bundles import BundlePair
from comparator.match.order import execution_order
from comparator.options import TokenMode
from comparator.plan.selection import Selected, Selector
from comparator.prepared import prepare
from comparator.report.records import TensorComparison, ValueComparison
from testbed.synthetic_engine import Engine, Request, serve
from testbed.synthetic_runs import SyntheticRun, record
from tests.comparator.fakes import (
    TP1,
    TP2,
    FakeProblem,
    FakeRecord,
    FakeRun,
    FakeTap,
    one_request,
    only,
    run_of,
    values,
)

DIMS = {
    "own": "t h # tp:replicated",
    "partial": "t h[tp:partial]",
    "scattered": "t h # tp:replicated",
    "gathered": "t h # tp:replicated",
    "gathered_scattered": "t h # tp:replicated",
}


def from_synthetic(run: SyntheticRun, forms: tuple[str, ...] = tuple(DIMS)) -> FakeRun:
    """A synthetic run as the comparator reads it, one name per form."""
    records = [
        FakeRecord(form, run.tensors[form][step, rank], rank=rank, step=step, dims=DIMS[form])
        for step in run.steps
        for form in forms
        for rank in run.ranks
    ]
    return FakeRun(records, run.parallel, run.layouts)


REQUEST = [Request("r", (5, 6, 7, 8, 9), (10, 11, 12, 13))]


def test_tensor_parallel_runs_agree_step_by_step() -> None:
    baseline = from_synthetic(record(serve(REQUEST, Engine())))
    target = from_synthetic(record(serve(REQUEST, Engine(attention_tensor_parallel=2))))
    report = comparator.compare(baseline, target)
    assert report.passed, report.describe()
    assert report.summary.passed == len(DIMS) * len(target.steps)


@pytest.mark.parametrize("padding", ["max_len", "sum_len"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mode", ["per_step", "concat_steps", "smart"])
def test_data_parallel_attention_with_an_idle_rank(padding: str, seed: int, mode: TokenMode) -> None:
    """The scenario of the project: one request; the other rank brings padding or dummy rows."""
    baseline = from_synthetic(record(serve(REQUEST, Engine(attention_tensor_parallel=2))))
    engine = Engine(data_parallel=2, attention_tensor_parallel=2, padding=padding, seed=seed)
    faultless = record(serve(REQUEST, engine))
    report = comparator.compare(baseline, from_synthetic(faultless), token_aligner=mode)
    assert report.passed, report.describe()
    assert report.summary.failed == report.summary.errored == report.summary.skipped == 0
    served = next(rank for rank in faultless.ranks if faultless.layouts[0, rank].real_rows)
    shared = faultless.layouts[0, served].data_parallel
    assert shared is not None
    first_row = {"own": 0, "partial": 0, "gathered": sum(shared.rows[: shared.rank])}
    for form, row in first_row.items():
        faulty = faultless
        for rank in faultless.ranks if form == "gathered" else [served]:
            faulty = faulty.with_fault(form, 0, rank, row)
        report = comparator.compare(baseline, from_synthetic(faulty), token_aligner=mode, diff_threshold="max_abs <= 0")
        assert {finding.name for finding in report.of("failed")} == {form}, report.describe()


def test_a_fault_in_one_replica_fails() -> None:
    faultless = record(serve(REQUEST, Engine(attention_tensor_parallel=2)))
    baseline = from_synthetic(record(serve(REQUEST, Engine())), ("own",))
    report = comparator.compare(baseline, from_synthetic(faultless.with_fault("own", 0, 1, 2), ("own",)))
    finding = report.first_divergence
    assert isinstance(finding, TensorComparison)
    assert finding.diff is not None
    assert finding.diff.passed
    assert not finding.replicated_checks[0].passed
    assert not report.passed


def test_several_requests_over_data_parallel_ranks() -> None:
    requests = [Request(f"r{i}", tuple(range(i * 10, i * 10 + 3 + i)), (90 + i, 95 + i, 97)) for i in range(4)]
    baseline = from_synthetic(record(serve(requests, Engine(max_running=1))))
    engine = Engine(data_parallel=2, attention_tensor_parallel=2, chunk=3, mixed=True, seed=3)
    report = comparator.compare(baseline, from_synthetic(record(serve(requests, engine))), token_aligner="smart")
    assert report.passed, report.describe()
    assert {
        finding.tokens.matched for finding in report if isinstance(finding, TensorComparison) and finding.tokens
    } == {sum(len(request.tokens) for request in requests)}


def test_the_first_difference_is_the_first_in_the_order_of_execution() -> None:
    tensors = {name: values(3, 4, seed=seed) for seed, name in enumerate("abc")}
    baseline = FakeRun([FakeRecord(n, x, step=s, dims="t h") for s in range(2) for n, x in tensors.items()])
    target = FakeRun(
        [
            FakeRecord(n, x * (1.5 if (n == "b" and s == 1) or n == "c" else 1), step=s, dims="t h")
            for s in range(2)
            for n, x in tensors.items()
        ]
    )
    report = comparator.compare(baseline, target)
    assert [(f.name, f.location.step) for f in report.of("failed")] == [("c", 0), ("b", 1), ("c", 1)]
    assert report.first_divergence is report.of("failed")[0]
    assert report.summary.first_divergence == "step 0: c at row 0"
    assert report.summary.exit_code == 1


@pytest.mark.parametrize("kept", [1, 100])
@pytest.mark.parametrize("mode", ["per_step", "concat_steps"])
def test_what_of_a_pair_is_compared_is_found_once(monkeypatch: pytest.MonkeyPatch, mode: TokenMode, kept: int) -> None:
    """Each pair is measured and judged: what was selected of it is kept as far as there is room."""
    asked: list[str] = []
    select = Selector.select

    def counted(self: Selector, pair: BundlePair) -> list[Selected]:
        asked.append(pair.label)
        return select(self, pair)

    monkeypatch.setattr(Selector, "select", counted)
    monkeypatch.setattr(comparator.prepared, "MOST_SELECTED", kept)
    runs = [
        FakeRun(
            [FakeRecord(name, values(3, 4), tags={"layer_id": one}, step=step) for step in range(2) for one in range(3)]
            + [FakeRecord("scale", values(2), step=step, dims="h") for step in range(2)]
        )
        for name in ("x", "x")
    ]
    report = comparator.compare(*runs, token_aligner=mode)
    assert report.passed, report.describe()
    assert len(report.findings) == (8 if mode == "per_step" else 5)  # what has no tokens is compared step by step
    pairs = 8 if mode == "per_step" else 4
    assert len(asked) == pairs if kept == 100 else pairs <= len(asked) <= 2 * pairs


def test_failures_that_are_allowed() -> None:
    baseline = FakeRun([FakeRecord("good", values(2, 2), dims="t h"), FakeRecord("bad", values(2, 2), dims="t h")])
    target = FakeRun([FakeRecord("good", values(2, 2), dims="t h"), FakeRecord("bad", -values(2, 2), dims="t h")])
    assert not comparator.compare(baseline, target).passed
    assert comparator.compare(baseline, target, allow_failed_pattern="ba.").passed
    assert not comparator.compare(baseline, target, allow_failed_pattern="b").passed


def test_tensors_of_one_side_are_skipped() -> None:
    both = FakeRecord("both", values(2, 2), dims="t h")
    baseline = FakeRun([both, FakeRecord("left", values(2, 2), dims="t h")])
    target = FakeRun([both, FakeRecord("right", values(2, 2), dims="t h")])
    report = comparator.compare(baseline, target)
    assert report.passed
    assert {f.name: f.reason for f in report.of("skipped")} == {  # type: ignore[union-attr]
        "right": "baseline_load_failed",
        "left": "target_load_failed",
    }
    assert not comparator.compare(baseline, target, allow_skipped_pattern="^$").passed


def test_nothing_in_common() -> None:
    report = comparator.compare(run_of(values(2, 2), name="a"), run_of(values(2, 2), name="b"))
    assert not report.passed
    assert "no tensor in common" in report.describe()


def test_problems_of_a_run_are_shown() -> None:
    target = replace(run_of(values(2, 2)), problems=[FakeProblem("truncated", "rank 0 ends early")])
    report = comparator.compare(run_of(values(2, 2)), target)
    assert report.logs[0].errors[0].message == "target: rank 0 ends early"


def test_nan_is_never_a_pass() -> None:
    x = values(2, 2)
    x[0, 1] = math.nan
    report = comparator.compare(run_of(x), run_of(x.copy()))
    assert not report.passed
    finding = only(report)
    assert (finding.baseline.stats.nan_count, finding.target.stats.nan_count) == (1, 1)
    assert any("--equal-nan" in note.message for note in finding.infos)
    assert comparator.compare(run_of(x), run_of(x.copy()), equal_nan=True).passed


def test_integers_must_be_equal() -> None:
    ids = np.arange(1000, 2000)
    other = ids.copy()
    other[3] += 1
    assert not comparator.compare(run_of(ids, dims="t"), run_of(other, dims="t")).passed
    assert comparator.compare(run_of(ids, dims="t"), run_of(ids.copy(), dims="t")).passed
    assert comparator.compare(run_of(ids, dims="t"), run_of(other, dims="t"), diff_threshold="rel <= 1e-3").passed


def test_a_common_factor_fails_unless_a_criterion_allows_it_which_points_it_out() -> None:
    x = values(8, 16)
    runs = run_of(x), run_of(x * np.float32(1.02))
    failed = comparator.compare(*runs)
    assert not failed.passed
    assert failed.diagnosis is not None
    assert failed.diagnosis.verdict == "differ"
    report = comparator.compare(*runs, diff_threshold="rel <= 1e-3")
    assert report.passed
    assert any("1.02 times the baseline" in note.message for note in only(report).infos)


def test_shapes_that_differ_fail() -> None:
    finding = only(comparator.compare(run_of(values(2, 3)), run_of(values(2, 4))))
    assert finding.shape_mismatch
    assert finding.category == "failed"


def test_values_are_compared_structurally() -> None:
    left, right = {"layers": [1, 2, {"a": None}]}, {"layers": [1, 2, {"a": 0}]}
    baseline = FakeRun([FakeRecord("config", None, value=left), FakeRecord("x", values(2), dims="t")])
    target = FakeRun([FakeRecord("config", None, value=right), FakeRecord("x", values(2), dims="t")])
    (finding,) = comparator.compare(baseline, target).of("failed")
    assert isinstance(finding, ValueComparison)
    assert finding.difference_path == "['layers'][2]['a']"


def test_padding_may_hold_anything() -> None:
    """Rows of padding differ between replicas and hold NaN; nothing of them is compared."""
    x = values(5, 4)
    padded = [np.concatenate([x, np.full((3, 4), fill, np.float32)]) for fill in (math.nan, 7.0)]
    layouts = one_request([5], rows=[8])
    target = run_of(*padded, dims="t h # tp:replicated", parallel=TP2)
    target = replace(target, layouts={**layouts, (0, 1): layouts[0, 0]})
    report = comparator.compare(run_of(x, layouts=one_request([5]), parallel=TP1), target)
    assert report.passed, report.describe()
    assert only(report).tokens.padding_target == 3


def test_values_without_tokens_are_compared_step_by_step_when_steps_are_joined() -> None:
    def run(scale: float) -> FakeRun:
        records = [
            FakeRecord(name, array, step=step, dims=dims)
            for step in range(3)
            for name, array, dims in (("x", values(2, 3), "t h"), ("norm", values(3) * scale, "h"))
        ]
        return FakeRun(records)

    report = comparator.compare(run(1), run(1), token_aligner="concat_steps")
    assert report.summary.passed == 4
    assert [f.location.step for f in report if f.name == "norm"] == [0, 1, 2]
    assert comparator.compare(run(1), run(2), token_aligner="concat_steps").summary.failed == 3


def test_silent_taps() -> None:
    target = replace(run_of(values(2, 2)), taps=[FakeTap("m#1:x", 1), FakeTap("m#2:y", 0)])
    report = comparator.compare(run_of(values(2, 2)), target)
    assert report.passed
    assert "m#2:y (model.py:1) never fired" in report.logs[0].infos[0].message
    assert not comparator.compare(run_of(values(2, 2)), target, strict_taps=True).passed


def test_messages_are_switched_by_name() -> None:
    spoiled = values(2, 2)
    spoiled[0, 0] = math.nan
    both = FakeRun([FakeRecord("x", values(2, 2), dims="t h"), FakeRecord("mask", spoiled, dims="t h")])
    one = FakeRun([both.records[0]])
    assert comparator.compare(one, both).passed
    assert not comparator.compare(one, both, error=frozenset({"only-in-target"})).passed
    assert comparator.compare(both, both, equal_nan=True).passed
    assert not comparator.compare(both, both, equal_nan=True, error=frozenset({"non-finite"})).passed
    with pytest.raises(comparator.ComparatorError, match="non-finite"):
        comparator.compare(both, both, allow=frozenset({"nonfinite"}))


def test_units_and_what_they_give_can_be_sent_elsewhere() -> None:
    records = [
        FakeRecord(name, values(3, 2, seed=step), step=step, dims="t h") for step in range(3) for name in ("x", "y")
    ]
    prepared = prepare(FakeRun(records), FakeRun(records), comparator.Options())
    assert [unit.pairs for unit in prepared.units] == [(0, 2, 4), (1, 3, 5)]
    for unit in prepared.units:
        result = pickle.loads(pickle.dumps(prepared.measure(pickle.loads(pickle.dumps(unit)))))
        assert [row.pair for row in result.rows] == list(unit.pairs)


def test_layers_share_a_plan_and_a_family_gives_its_rows() -> None:
    records = [
        FakeRecord("x", values(2, 4, seed=step), step=step, dims="t h", tags={"layer_id": layer})
        for step in range(2)
        for layer in range(3)
    ]
    prepared = prepare(FakeRun(records), FakeRun(records), comparator.Options())
    plans = [prepared.planner.plan(pair, prepared.rules) for pair in prepared.pairs]
    assert plans[0] is plans[1] is plans[2]
    assert plans[3] is not plans[0]
    rows = prepared.families.rows(prepared.pairs[1].family)
    assert rows is not None
    assert rows.step.tolist() == [0, 0, 1, 1]
    assert np.array_equal(rows.target, np.concatenate([values(2, 4, seed=0), values(2, 4, seed=1)]))


def test_a_step_range() -> None:
    records = [FakeRecord("x", values(2, 2) * (1 if step < 2 else 9), step=step, dims="t h") for step in range(4)]
    baseline = FakeRun([FakeRecord("x", values(2, 2), step=step, dims="t h") for step in range(4)])
    assert comparator.compare(baseline, FakeRun(records), end_step=1).summary.passed == 2
    assert comparator.compare(baseline, FakeRun(records), start_step=1).summary.failed == 2


def test_a_filter_searches_name_and_tags() -> None:
    records = [FakeRecord("x", values(2, 2), dims="t h", tags={"layer_id": layer}) for layer in range(3)]
    report = comparator.compare(FakeRun(records), FakeRun(records), filter='name == "x" and layer_id == 1')
    assert [f.label for f in report] == ["x layer_id=1"]


def test_tensors_are_loaded_pair_by_pair() -> None:
    records = [FakeRecord(f"x{i}", values(2, 2), dims="t h") for i in range(5)]
    prepared = prepare(FakeRun(records), FakeRun(records), comparator.Options())
    assert not any(one.loads for one in records)
    prepared.measure(prepared.units[0])
    assert [one.loads > 0 for one in records] == [True, False, False, False, False]


def test_assert_runs_match_lists_what_failed() -> None:
    with pytest.raises(AssertionError, match="failed  step 0  x  rel"):
        comparator.assert_runs_match(run_of(values(2, 2)), run_of(-values(2, 2)))


def test_a_table_of_all_findings() -> None:
    table = comparator.compare(run_of(values(2, 2)), run_of(values(2, 2) * 2)).to_polars()
    assert table["category"].to_list() == ["failed"]
    assert table["rel"][0] == pytest.approx(0.2)


def test_the_order_of_execution_is_that_of_the_rank_that_did_most() -> None:
    """An idle rank leaves taps out; a rank may have one of its own; pipeline stages follow each other."""
    places = ["in", "attention", "residual", "mlp", "gather", "head", "logits"]
    busy, idle, later = ["in", "attention", "residual", "mlp"], ["in", "residual", "gather", "mlp"], ["head", "logits"]
    for order in ([0, 1], [1, 0]):
        recorded = [
            (step, rank, places.index(name))
            for step in order
            for rank, names in enumerate([idle[:2], busy, idle, later])
            for name in names[: len(names) - step]
        ]
        columns = [np.array(column) for column in zip(*recorded, strict=True)]
        found = [recorded[number] for number in execution_order(*columns).tolist()]
        assert [step for step, _, _ in found] == sorted(step for step, _, _ in recorded)
        assert list(dict.fromkeys(places[place] for step, _, place in found if step == 0)) == [
            *["in", "attention", "residual", "gather", "mlp"],
            *later,
        ]


def test_a_stage_with_another_copy_of_tied_weights_comes_behind_the_first() -> None:
    first, last = [0, 1, 2, 3, 9], [4, 5, 6, 9]
    columns = np.array([(0, rank, place) for rank, places in enumerate((first, last)) for place in places]).T
    found = columns[2][execution_order(*columns)]
    assert list(dict.fromkeys(found.tolist())) == [0, 1, 2, 3, 4, 5, 6, 9]


def test_of_pipeline_stages_the_order_is_that_of_a_run_without() -> None:
    """The first stage has its gradients when the last one has done all, and records them before that one's values."""
    names = ["first", "last", "last.grad", "first.grad"]
    one = FakeRun([FakeRecord(name, values(2, 2), dims="t h") for name in names])
    stages = [[names[0], names[3]], [names[1], names[2]]]
    records = [
        FakeRecord(name, values(2, 2), dims="t h", rank=rank) for rank, part in enumerate(stages) for name in part
    ]
    two = FakeRun(records, parallel={rank: {"pp": (rank, 2)} for rank in range(2)})
    assert [one.name for one in comparator.compare(one, two)] == names
    assert [one.name for one in comparator.compare(two, two)] == [*stages[0], *stages[1]]


def test_steps_that_are_grouped_but_not_joined_are_compared_one_by_one() -> None:
    records = [FakeRecord("x", values(2, 2, seed=step), step=step, dims="t h") for step in range(3)]
    keys = frozenset({"rank", "step"})
    assert comparator.compare(FakeRun(records), FakeRun(records), grouping_skip_keys=keys).summary.passed == 3

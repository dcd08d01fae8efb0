"""Runs never agree by accident: damage, what only one side has, and what was left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import comparator
from comparator.cli import main
from dumper.layout import SequenceSpan, TokenLayout
from tests.comparator.fakes import FakeProblem, FakeRecord, FakeRun, one_request, values
from tests.comparator.recording import write_run


def run_of(names: dict[str, int], **arguments: object) -> FakeRun:
    """``names`` with a number of layers each."""
    records = [
        FakeRecord(name, values(3, 4, seed=layer), dims="t h", tags={"layer_id": layer})
        for name, layers in names.items()
        for layer in range(layers)
    ]
    return FakeRun(records, **arguments)  # type: ignore[arg-type]


WHOLE = {"attn": 2, "mlp": 2}


@pytest.mark.parametrize(
    "kind",
    ["truncated", "corrupted", "missing_records", "missing_rank", "mixed_runs", "repaired", "lost", "unreadable"],
)
@pytest.mark.parametrize("side", ["baseline", "target"])
def test_a_run_that_is_not_whole_does_not_agree(kind: str, side: str) -> None:
    runs = {name: run_of(WHOLE) for name in ("baseline", "target")}
    runs[side] = replace(runs[side], problems=[FakeProblem(kind, "something is not there")])
    report = comparator.compare(runs["baseline"], runs["target"])
    assert not report.passed
    assert f"{side}: something is not there" in report.describe()
    allowed = comparator.compare(runs["baseline"], runs["target"], allow=frozenset({kind.replace("_", "-")}))
    assert allowed.passed, allowed.describe()


def test_a_truncated_file_does_not_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = write_run(run_of(WHOLE), tmp_path / "whole"), write_run(run_of(WHOLE), tmp_path / "cut")
    file = cut / "rank-0.msgpack"
    file = file if file.exists() else next(cut.glob("rank-*.msgpack"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert main([str(whole), str(cut)]) == 1
    output = capsys.readouterr().out
    assert "(truncated)" in output or "(missing-records)" in output
    assert main([str(whole), str(whole)]) == 0


def test_names_that_the_cut_off_side_lacks_fail_even_when_the_cut_is_allowed() -> None:
    target = replace(run_of({"attn": 2}), problems=[FakeProblem("truncated", "ends early")])
    report = comparator.compare(run_of(WHOLE), target, allow=frozenset({"truncated"}))
    assert [note.category for note in report.summary.errors] == ["lost-with-damage"]
    both = frozenset({"truncated", "lost-with-damage"})
    assert comparator.compare(run_of(WHOLE), target, allow=both).passed


def test_names_of_one_side_are_named_in_the_summary() -> None:
    report = comparator.compare(run_of(WHOLE), run_of({"attn": 2, "router": 1}))
    assert report.passed, report.describe()
    assert (report.summary.only_baseline, report.summary.only_target) == (["mlp"], ["router"])
    assert "only the baseline has: mlp" in report.describe()
    assert not comparator.compare(run_of(WHOLE), run_of({"attn": 2}), error=frozenset({"only-in-baseline"})).passed


def test_a_layer_that_one_side_lacks_is_no_agreement() -> None:
    report = comparator.compare(run_of(WHOLE), run_of({"attn": 2, "mlp": 1}))
    assert not report.passed
    (error,) = report.summary.errors
    assert error.category == "partly-one-sided"
    assert "mlp layer_id=1" in error.message
    assert comparator.compare(run_of(WHOLE), run_of({"attn": 2, "mlp": 1}), allow_skipped_pattern="mlp").passed
    assert not comparator.compare(run_of(WHOLE), run_of({"attn": 2, "mlp": 1}), allow_skipped_pattern="attn").passed


def test_steps_that_one_side_lacks_are_no_agreement() -> None:
    def steps(count: int) -> FakeRun:
        records = [FakeRecord("x", values(2, 4, seed=step), dims="t h", step=step) for step in range(count)]
        return FakeRun(records, {}, one_request([2] * count))

    report = comparator.compare(steps(4), steps(3))
    assert [note.category for note in report.summary.errors] == ["partly-one-sided"]
    assert comparator.compare(steps(4), steps(3), end_step=2).passed
    joined = comparator.compare(steps(4), steps(3), token_aligner="concat_steps")
    assert not joined.passed
    assert "2 cut to the shorter side (target)" in joined.describe()


def test_gradients_of_a_trainer_are_no_missing_part_of_a_server() -> None:
    trainer = run_of({"attn": 1})
    trainer = replace(trainer, records=[*trainer.records, replace(trainer.records[0], stream="grad")])
    report = comparator.compare(trainer, run_of({"attn": 1}))
    assert report.passed, report.describe()
    assert report.summary.only_baseline == ["attn stream=grad"]


def test_ranks_that_are_compared_one_by_one() -> None:
    """``--preset raw``: what the ranks of the target have beyond those of the baseline is not forgotten."""
    baseline = FakeRun([FakeRecord("experts", values(2, 4))], {0: {"ep": (0, 1)}})
    faulty = [FakeRecord("experts", values(2, 4)), FakeRecord("experts", values(2, 4) * 3, rank=1)]
    report = comparator.compare(
        baseline, FakeRun(faulty, {0: {"ep": (0, 2)}, 1: {"ep": (1, 2)}}), grouping_skip_keys=frozenset()
    )
    assert not report.passed
    assert "rank=1" in report.summary.errors[0].message


@pytest.mark.parametrize("value", [float("nan"), {"loss": [1.0, float("nan")]}, complex(0, float("nan"))])
def test_nan_as_a_number_agrees_with_nothing(value: object) -> None:
    def run() -> FakeRun:
        return FakeRun([FakeRecord("loss", None, value=value), FakeRecord("x", values(2, 2))])

    assert not comparator.compare(run(), run()).passed
    assert comparator.compare(run(), run(), equal_nan=True).passed


def test_empty_tensors_alone_show_nothing() -> None:
    empty = FakeRun([FakeRecord("x", np.zeros((0, 4), np.float32), dims="t h")])
    report = comparator.compare(empty, empty)
    assert [note.category for note in report.summary.errors] == ["only-empty"]
    both = FakeRun([*empty.records, FakeRecord("y", values(2, 4), dims="t h")])
    assert comparator.compare(both, both).passed


def test_rows_of_which_all_are_padding_show_nothing() -> None:
    layouts = one_request([0], rows=[4])
    padding = FakeRun([FakeRecord("x", values(4, 4), dims="t h"), FakeRecord("y", values(3, 3))], {}, layouts)
    report = comparator.compare(padding, padding)
    assert not report.passed
    assert "no row was compared of x" in report.describe()


def test_the_account_of_a_name_adds_up() -> None:
    layouts = one_request([3, 1], rows=[5, 1])
    records = [FakeRecord("x", values(rows, 4, seed=step), dims="t h", step=step) for step, rows in enumerate((5, 1))]
    run = FakeRun([*records, FakeRecord("only", values(7, 2), dims="t h")], {}, layouts)
    report = comparator.compare(run, FakeRun(records, {}, layouts), token_aligner="smart")
    accounts = {account.name: account for account in report.accounts}
    assert accounts["x"].baseline.model_dump() == {"recorded": 6, "compared": 4, "left_out": {"padding": 2}}
    assert accounts["only"].baseline.left_out == {"no counterpart in target": 7}
    for account in report.accounts:
        for side in (account.baseline, account.target):
            assert side.recorded == side.compared + sum(side.left_out.values())


def test_other_tokens_step_by_step_are_said_to_be_others() -> None:
    def served(first: int) -> FakeRun:
        layout = one_request([3])[0, 0]
        shifted = replace(layout, token_ids=np.arange(first, first + 3, dtype=np.int64))
        return FakeRun([FakeRecord("x", values(3, 4), dims="t h")], {}, {(0, 0): shifted})

    report = comparator.compare(served(10), served(50))
    assert not report.passed
    assert "not the same tokens; --token-aligner smart" in report.findings[0].errors[0].message


def test_a_step_without_tokens_on_one_side_names_smart() -> None:
    there, empty = one_request([3]), one_request([0], rows=[3])
    runs = [FakeRun([FakeRecord("x", values(3, 4), dims="t h")], {}, layouts) for layouts in (there, empty)]
    report = comparator.compare(*runs)
    assert not report.passed
    assert "nothing to compare in the token dimension" in report.describe()
    assert "smart" in report.describe()


@pytest.mark.parametrize("flags", [["--filter", "layer_id == 9"], ["--start-step", "7"], ["--filter", "rank == 5"]])
def test_a_selection_of_nothing_is_no_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    run = str(write_run(run_of(WHOLE), tmp_path / "run"))
    assert main([run, run, *flags]) == 1
    assert "(nothing-to-compare)" in capsys.readouterr().out


def test_rules_and_patterns_that_match_nothing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(run_of(WHOLE), tmp_path / "run"))
    config = tmp_path / "map.yaml"
    config.write_text("map: [{baseline: 'atn, layer_id={i}', target: 'attn, layer_id={i}'}]")
    assert main([run, run, "--map", str(config), "--override-dims", "mpl:t h"]) == 0
    output = capsys.readouterr().out
    assert "(atn, layer_id={i}) matches no record of the baseline (map-rule-unused)" in output
    assert "--override-dims 'mpl' is found in no recorded name (pattern-unused)" in output
    assert main([run, run, "--map", str(config), "--error", "map-rule-unused"]) == 1


def test_compared_does_not_count_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(run_of(names), tmp_path / name)) for name, names in (("a", WHOLE), ("b", {"attn": 2}))]
    assert main(runs) == 0
    output = capsys.readouterr().out
    assert "2 compared: 2 passed, 0 failed; 2 skipped, 0 errored" in output
    assert "baseline: 6 of 12 rows compared; left out: 6 no counterpart in target" in output
    assert "target: " not in output


def test_experts_that_count_anew_on_every_rank(tmp_path: Path) -> None:
    """A rule of the map computes the number of an expert from the rank's place."""
    whole = FakeRun([FakeRecord("expert", values(2, 4, seed=e), tags={"expert": e}, dims="t h") for e in range(4)])
    parallel = {rank: {"ep": (rank, 2)} for rank in range(2)}

    def spread(fault: float) -> FakeRun:
        records = [
            FakeRecord(
                "expert",
                values(2, 4, seed=2 * rank + expert) * (fault if rank and expert else 1),
                rank,
                dims="t h",
                tags={"expert": expert},
            )
            for rank in range(2)
            for expert in range(2)
        ]
        return FakeRun(records, parallel)

    config = tmp_path / "map.yaml"
    config.write_text(
        "map: [{baseline: 'expert, expert={e}', target: 'expert, expert={e}', target_values: {e: e + ep * 2}}]"
    )
    report = comparator.compare(whole, spread(1), map_config=config)
    assert report.passed, report.describe()
    assert report.summary.passed == 4
    faulty = comparator.compare(whole, spread(3), map_config=config)
    assert [finding.label for finding in faulty.of("failed")] == ["expert expert=3"]
    config.write_text(
        "map: [{baseline: 'expert, expert={e}', target: 'expert, expert={e}', target_values: {e: e + pp}}]"
    )
    with pytest.raises(comparator.ComparatorError, match="no coordinate 'pp'"):
        comparator.compare(whole, spread(1), map_config=config)


def served(*requests: tuple[int, int, int]) -> FakeRun:
    """One pass over requests, each given by its first token, where it starts, and how many tokens it computes."""
    spans = tuple(SequenceSpan(f"r{first}", start, count) for first, start, count in requests)
    ids = np.concatenate([np.arange(first, first + count) for first, _, count in requests]).astype(np.int64)
    rows = np.concatenate([values(count, 4, seed=first) for first, _, count in requests])
    layout = TokenLayout("extend", spans, len(ids), ids)
    return FakeRun([FakeRecord("x", rows, dims="t h")], {}, {(0, 0): layout})


def test_sequences_that_each_side_has_alone_are_no_agreement() -> None:
    report = comparator.compare(served((10, 0, 5), (50, 0, 5)), served((10, 0, 5), (90, 0, 5)), token_aligner="smart")
    assert not report.passed
    assert [note.category for note in report.summary.errors] == ["sequences-not-found"]
    assert report.accounts[0].baseline.left_out == {"no such sequence in target": 5}


def test_requests_that_one_side_served_beside_the_others_are_counted() -> None:
    report = comparator.compare(served((10, 0, 5)), served((10, 0, 5), (90, 0, 5)), token_aligner="smart")
    assert report.passed, report.describe()
    assert report.accounts[0].target.left_out == {"no such sequence in baseline": 5}


def test_continuations_of_a_text_that_parted_are_counted() -> None:
    runs = (served((10, 0, 5), (50, 8, 2)), served((10, 0, 5), (90, 8, 2)))
    report = comparator.compare(*runs, token_aligner="smart")
    assert report.passed, report.describe()
    assert report.accounts[0].baseline.left_out == {"no such continuation in target": 2}

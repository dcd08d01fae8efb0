"""The verdict over all pairs, from recorded runs to findings and exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import comparator
from comparator.cli import main
from comparator.diagnosis import TapKey
from comparator.report.records import TensorComparison
from dumper.layout import SequenceSpan, TokenLayout
from tests.comparator.diagnosis.simulator import DTYPES, LENGTHS, Fault, Kernels, Model, Recording
from tests.comparator.fakes import FakeRecord, FakeRun
from tests.comparator.recording import write_run

MODEL = Model(experts=True)
PLAIN, OTHER = Kernels(), Kernels(pieces=2, eager=True)
PLACE = TapKey("attn_output", 1)


def scaled(factor: float, name: str = "attn_output", layer: int = 1) -> Fault:
    def fault(tap: str, at: int | None, value: np.ndarray) -> np.ndarray:
        return value * np.float32(factor) if (tap, at) == (name, layer) else value

    return fault


def as_run(recorded: Recording) -> FakeRun:
    """The recording as one forward pass over all its sequences."""
    spans = tuple(SequenceSpan(f"r{number}", 0, length) for number, length in enumerate(LENGTHS))
    ids = np.arange(sum(LENGTHS), dtype=np.int64)
    layout = TokenLayout("extend", spans, sum(LENGTHS), token_ids=ids)
    records = [
        FakeRecord(
            key.name,
            value.astype(DTYPES[recorded.dtype]),
            dims="t h",
            tags={} if key.layer is None else {"layer_id": key.layer},
        )
        for key, value in recorded.values.items()
    ]
    return FakeRun(records, layouts={(0, 0): layout})


def test_other_kernels_agree_although_routing_flips() -> None:
    report = comparator.compare(as_run(MODEL.run(PLAIN)), as_run(MODEL.run(OTHER)))
    assert report.passed
    assert report.diagnosis is not None
    assert report.diagnosis.verdict == "agree"
    assert sum(flips.flipped for flips in report.diagnosis.flips)
    assert {finding.category for finding in report} == {"passed"}


@pytest.mark.parametrize("kernels", [PLAIN, OTHER])
def test_a_factor_is_found_where_it_came_in(kernels: Kernels) -> None:
    report = comparator.compare(as_run(MODEL.run(PLAIN)), as_run(MODEL.run(kernels, scaled(1.02))))
    assert not report.passed
    assert report.diagnosis is not None
    assert report.diagnosis.place == PLACE
    first = report.first_divergence
    assert isinstance(first, TensorComparison)
    assert (first.name, first.tags["layer_id"]) == ("attn_output", "1")
    assert first.analysis is not None
    assert first.analysis.judged == "introduced-here"
    behind = next(finding for finding in report if finding.label == "mlp_output layer_id=2")
    assert isinstance(behind, TensorComparison)
    assert behind.analysis is not None
    assert behind.analysis.source == PLACE.label
    before = [finding.category for finding in report if finding.tags.get("layer_id") == "0"]
    assert set(before) == {"passed"}


def test_a_criterion_switches_the_analysis_off_for_its_names_alone() -> None:
    runs = as_run(MODEL.run(PLAIN)), as_run(MODEL.run(PLAIN, scaled(1.02)))
    assert comparator.compare(*runs, diff_threshold=0.5).passed
    strict = comparator.compare(*runs, diff_threshold=["attn_output", "rel <= 0.5", ".*", "max_abs <= 0"])
    assert all(finding.category == "passed" for finding in strict if finding.name == "attn_output")
    assert not strict.passed


def test_a_reference_says_which_side_is_wrong() -> None:
    reference = as_run(MODEL.run(Kernels(dtype="float32")))
    good, bad = as_run(MODEL.run(PLAIN)), as_run(MODEL.run(OTHER, scaled(1.05)))
    for baseline, target, worse in ((good, bad, "target"), (bad, good, "baseline")):
        report = comparator.compare(baseline, target, reference=reference)
        assert report.reference is not None
        assert report.reference.worse == worse
        assert report.reference.place == PLACE
        assert f"the {worse} is" in report.describe()
    clean = comparator.compare(good, as_run(MODEL.run(OTHER)), reference=reference)
    assert clean.passed
    assert clean.reference is not None
    assert clean.reference.worse == "neither"


def test_noise_raises_floors_and_what_is_no_noise_is_refused() -> None:
    baseline, target = as_run(MODEL.run(PLAIN)), as_run(MODEL.run(PLAIN, scaled(1.02)))
    assert not comparator.compare(baseline, target, noise=[as_run(MODEL.run(OTHER))]).passed
    with pytest.raises(comparator.ComparatorError, match="no noise"):
        comparator.compare(baseline, target, noise=[as_run(MODEL.run(PLAIN, scaled(3)))])
    other = FakeRun([FakeRecord("something", np.ones((3, 4), np.float32), dims="t h")])
    with pytest.raises(comparator.ComparatorError, match="no tap with tokens in common"):
        comparator.compare(baseline, target, noise=[other])


def test_bitwise_asks_for_equal_bits() -> None:
    runs = as_run(MODEL.run(PLAIN)), as_run(MODEL.run(PLAIN)), as_run(MODEL.run(OTHER))
    assert comparator.compare(runs[0], runs[1], bitwise=True).passed
    report = comparator.compare(runs[0], runs[2], bitwise=True)
    assert not report.passed
    assert "not the same bit for bit" in report.words
    assert "another reason" not in report.words
    assert {finding.category for finding in report if finding.tags.get("layer_id") == "0"} == {"passed", "failed"}


def test_zero_of_either_sign_is_equal_but_not_bitwise() -> None:
    one, other = (FakeRun([FakeRecord("x", np.full((2, 3), zero, np.float32), dims="t h")]) for zero in (0.0, -0.0))
    assert comparator.compare(one, other).passed
    assert not comparator.compare(one, other, bitwise=True).passed


@pytest.mark.parametrize(
    ("left", "right", "passes"),
    [
        (np.ones((1, 8)), np.ones((1, 8)), True),
        (np.zeros((5, 8)), np.zeros((5, 8)), True),
        (np.zeros((5, 8)), np.ones((5, 8)), False),
        (np.ones((5, 8)), np.full((5, 8), 1.5), False),
        (np.ones((1, 8)), np.full((1, 8), 1.5), False),
        (np.ones((5, 8)), np.full((5, 8), np.nan), False),
        (np.full((5, 8), np.nan), np.full((5, 8), np.nan), False),
        (np.zeros((0, 8)), np.zeros((0, 8)), True),
    ],
)
def test_degenerate_tensors_have_a_verdict(left: np.ndarray, right: np.ndarray, passes: bool) -> None:
    one, other = (FakeRun([FakeRecord("x", side.astype(np.float32), dims="t h")]) for side in (left, right))
    report = comparator.compare(one, other)
    assert report.of("errored") == ()
    assert (report.findings[0].category == "passed") is passes


def test_the_command_line_reports_reference_and_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = Kernels(dtype="float16")
    good = write_run(as_run(MODEL.run(half)), tmp_path / "good")
    bad = write_run(as_run(MODEL.run(half, scaled(1.02))), tmp_path / "bad")
    reference = write_run(as_run(MODEL.run(Kernels(dtype="float32"))), tmp_path / "reference")
    arguments = [str(good), str(bad), "--reference", str(reference), "--output-format", "json", "--report-path", ""]
    assert main(arguments) == 1
    lines = {line["type"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    diagnosis, summary = lines["diagnosis"], lines["summary"]
    assert diagnosis["verdict"] == summary["verdict"] == "differ"
    assert (diagnosis["place"]["name"], diagnosis["place"]["layer"]) == ("attn_output", 1)
    assert diagnosis["reference"]["worse"] == "target"


def test_calibrate_writes_floors_that_a_comparison_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = Kernels(dtype="float16"), Kernels(pieces=4, eager=True, dtype="float16")
    baseline = write_run(as_run(MODEL.run(one)), tmp_path / "baseline")
    variant = write_run(as_run(MODEL.run(other)), tmp_path / "variant")
    floors = tmp_path / "floors.json"
    assert main(["calibrate", str(baseline), str(variant), "-o", str(floors)]) == 0
    assert json.loads(floors.read_text())["format"] == "tensortap-calibration"
    flags = ["--calibration", str(floors), "--report-path", ""]
    assert main([str(baseline), str(variant), *flags]) == 0
    floors.write_text("{}")
    assert main([str(baseline), str(variant), *flags]) == 2
    assert "is no calibration file" in capsys.readouterr().err
    assert main(["calibrate", str(baseline), str(variant), "-o", str(tmp_path / "no" / "floors.json")]) == 2


def replicated(*values: float) -> FakeRun:
    """A tensor that every rank of ``tp`` should hold in full."""
    rows = np.arange(1, 25, dtype=np.float32).reshape(6, 4)
    records = [
        FakeRecord("x", rows * np.float32(value), dims="t h # tp:replicated", rank=rank)
        for rank, value in enumerate(values)
    ]
    return FakeRun(records, parallel={rank: {"tp": (rank, len(values))} for rank in range(len(values))})


def test_replicas_of_one_side_that_disagree_come_first_in_words() -> None:
    report = comparator.compare(replicated(1, 1), replicated(1, 2))
    assert not report.passed
    assert report.words.startswith("Replicas of the target, which should be the same on all its ranks, are not: x")
    assert "fault of the target alone" in report.describe()
    both = comparator.compare(replicated(1, 2), replicated(3, 3))
    assert both.words.startswith("Replicas of the baseline")
    assert "The runs differ" in both.words


def test_the_words_say_why_the_exit_code_is_1_where_the_diagnosis_finds_no_fault() -> None:
    values = np.arange(1, 25, dtype=np.float32).reshape(6, 4)
    shared = FakeRecord("x", values, dims="t h")
    counted = [FakeRecord("n", np.array([number]), dims="t") for number in (1, 2)]
    report = comparator.compare(FakeRun([shared, counted[0]]), FakeRun([shared, counted[1]]))
    assert report.summary.exit_code == 1
    assert report.diagnosis is not None
    assert report.diagnosis.verdict == "agree"
    assert "The exit code is 1 for another reason: n" in report.words
    allowed = comparator.compare(
        as_run(MODEL.run(PLAIN)), as_run(MODEL.run(PLAIN, scaled(1.02))), allow_failed_pattern=".*"
    )
    assert allowed.passed
    assert "The exit code is 0 all the same" in allowed.words


def with_settings(run: FakeRun, **settings: str) -> FakeRun:
    """The run with facts of its model in the header."""
    return replace(run, settings={f"model.{name}": value for name, value in settings.items()})


def test_headers_say_how_many_experts_a_token_gets_and_how_wide_a_head_is() -> None:
    sides = [
        with_settings(as_run(MODEL.run(kernels)), num_experts_per_tok="2", head_dim="32") for kernels in (PLAIN, OTHER)
    ]
    report = comparator.compare(*sides)
    assert report.diagnosis is not None
    assert report.diagnosis.top_k == 2
    heads = [test.where for one in report.diagnosis.judgements for test in one.tests if test.name == "head"]
    assert heads
    assert all(where.endswith("of size 32") for where in heads)


def test_an_unrecorded_bias_leaves_single_rows_of_experts_unjudged() -> None:
    """The choice goes by scores that nothing recorded tells: a row that stands out may have other experts."""
    settings = {"num_experts_per_tok": "2", "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    sides = [with_settings(as_run(MODEL.run(kernels)), **settings) for kernels in (PLAIN, OTHER)]
    report = comparator.compare(*sides)
    assert report.diagnosis is not None
    assert not report.diagnosis.flips
    experts = [one for one in report.diagnosis.judgements if one.key.name == "moe_expert_output"]
    assert all(test.name != "row" for one in experts for test in one.tests)


def test_a_recorded_bias_that_no_header_explains_leaves_them_unjudged_too() -> None:
    """A model in a program of one's own has no header: how the bias takes part is not known."""

    def with_bias(recorded: Recording) -> FakeRun:
        bias = {
            TapKey("moe_correction_bias", key.layer): np.ones_like(value)
            for key, value in recorded.values.items()
            if key.name == "moe_router_logits"
        }
        return as_run(replace(recorded, values=recorded.values | bias))

    report = comparator.compare(*(with_bias(MODEL.run(kernels)) for kernels in (PLAIN, OTHER)))
    assert report.diagnosis is not None
    assert not report.diagnosis.flips
    experts = [one for one in report.diagnosis.judgements if one.key.name == "moe_expert_output"]
    assert experts
    assert all(test.name != "row" for one in experts for test in one.tests)


def sampled(token: int, logits: np.ndarray, later: float) -> FakeRun:
    """A prompt of 8 tokens, the token that its logits chose, and one more pass over what that token leads to."""
    prompt = np.arange(8)
    layouts = {
        (0, 0): TokenLayout("extend", (SequenceSpan("r", 0, 8),), 8, token_ids=prompt),
        (1, 0): TokenLayout("decode", (SequenceSpan("r", 8, 1),), 1, token_ids=np.array([token])),
    }
    second = np.full((1, logits.shape[1]), later, np.float32)
    records = [
        FakeRecord("next_token_logits", values, dims="t vocab", step=step)
        for step, values in enumerate((logits, second))
    ]
    return FakeRun(records, layouts=layouts)


@pytest.mark.parametrize(("gap", "cause"), [(0.01, "tie"), (2.0, "fault")])
def test_log_probabilities_stand_beside_a_text_that_parts(gap: float, cause: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    baseline = random.standard_normal((8, 512)).astype(np.float32)
    target = baseline + np.float32(0.01) * random.standard_normal(baseline.shape).astype(np.float32)
    baseline[7, [5, 9]] = 8.0, 8.0 - gap
    target[7, [5, 9]] = 8.0, 8.01
    runs = [
        write_run(sampled(5, baseline, 0.0), tmp_path / "one"),
        write_run(sampled(9, target, 3.0), tmp_path / "two"),
    ]
    report = comparator.compare(*runs, token_aligner="smart")
    assert report.diagnosis is not None
    (text,) = report.diagnosis.texts
    assert (text.cause, text.parting.position) == (cause, 8)
    expected = [float(side[7, 5] - np.log(np.exp(side[7]).sum())) for side in (baseline, target)]
    assert text.log_probabilities == pytest.approx(expected, abs=1e-5)
    assert report.diagnosis.tokens is not None
    assert report.diagnosis.tokens.rows == 8, "what follows is another text and is not compared"
    if cause == "tie":
        assert f"a log probability of {expected[0]:.3f} against {expected[1]:.3f}" in report.words
    else:
        assert report.diagnosis.place == TapKey("next_token_logits")

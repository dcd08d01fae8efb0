"""A part of ``benchmarks/faults`` that needs no server: clean pairs agree, and faults are found where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

import comparator
from benchmarks.faults.catalogue import Place, load
from benchmarks.faults.distinct import digest
from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.registry import engine
from benchmarks.faults.judging import judge
from benchmarks.faults.outcomes import Judged
from benchmarks.faults.tables import smallest, upper_bound
from testbed.paths import CHECKOUT

FAMILY = "llama-bfloat16"
BASELINE = "plain"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def record(root: Path, variant: str, fault: str | None = None) -> Path:
    """The run of a variant of the small tensor-parallel Transformer on one rank, with a fault planted."""
    run = root / f"{fault or 'clean'}--{variant}"
    if not run.exists():
        configs = [one.config for one in load("tensor_parallel") if one.name == fault]
        problems = engine("tensor_parallel").record([Job(FAMILY, variant, run, tuple(configs))])
        assert not problems
    return run


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["blocks", "split4", "chunk48-wide-padding"])
def test_clean_variants_agree_and_differ_in_their_bits(variant: str, recordings: Path) -> None:
    baseline, target = record(recordings, BASELINE), record(recordings, variant)
    assert digest(baseline) != digest(target)
    outcome = judge(baseline, target)
    assert outcome.verdict == "agree", outcome
    assert outcome.differs


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        "attention_scaled_1_5",
        "head_zeroed",
        "residual_added_twice",
        "gate_and_up_swapped",
        "mlp_not_added",
        "nan_in_attention",
    ],
)
def test_a_fault_is_found_where_it_was_planted(fault: str, recordings: Path) -> None:
    """Against a run that computes attention, and so rounds, in another way."""
    entry = next(one for one in load("tensor_parallel") if one.name == fault)
    outcome = judge(record(recordings, "blocks"), record(recordings, BASELINE, fault))
    assert outcome.verdict == "differ"
    assert outcome.place == entry.place


@pytest.mark.slow
def test_a_digest_is_that_of_what_tokens_hold(recordings: Path) -> None:
    """In chunks of 16 this model computes every row to the same bits, in other passes."""
    assert digest(record(recordings, BASELINE)) == digest(record(recordings, "chunk16"))


def test_the_catalogue_can_be_read_and_says_what_it_rebuilds() -> None:
    faults = load()
    assert len([fault for fault in faults if fault.is_fault]) >= 60
    assert len({fault.source for fault in faults if fault.source}) >= 20
    assert all(fault.source is None or fault.source.startswith("https://") for fault in faults)
    names = [(fault.engine, fault.name) for fault in faults]
    assert len(set(names)) == len(names)
    assert any(not fault.is_fault for fault in faults)
    assert any(fault.place == Place("attn_output", 2) for fault in faults)


def test_the_bound_on_a_rate() -> None:
    """Three in the number of trials, where nothing happened; 1 where it always did (Hanley and Lippman-Hand, 1983)."""
    assert upper_bound(0, 300) == pytest.approx(3 / 300, rel=0.01)
    assert upper_bound(5, 5) == 1.0
    assert upper_bound(0, 300) < upper_bound(1, 300) < upper_bound(2, 300)


def test_the_page_says_from_which_size_on_faults_are_found() -> None:
    def judged(verdict: str, size: float, floors: float, name: str, same: bool = True, family: str = "f") -> Judged:
        place = "a layer 1" if verdict == "differ" else None
        return Judged("faults", family, "b", "t", verdict, place, True, "", name, "a layer 1", same, size, floors)

    said = smallest(
        [
            judged("differ", 0.5, 50.0, "large"),
            judged("agree", 0.001, 0.4, "lost"),
            judged("differ", 0.006, 0.8, "small"),
            judged("differ", 0.0002, 0.8, "finer", family="f-float32"),
            judged("differ", 0.5, 50.0, "large", same=False),
            judged("agree", 0.5, 0.9, "small", same=False),
        ]
    )
    assert "Of 2 pairs with a fault of at least 3 floors 2 were found and 2 placed." in said
    assert "missed has 0.9 floors (small)" in said
    assert "In bfloat16 the smallest one found under the same numerics has a size of 0.006 (small)" in said
    assert "under other numerics has a size of 0.5 (large)" in said
    assert smallest([]) == "No size of a fault was measured."


def test_the_page_is_written_by_the_script() -> None:
    page = CHECKOUT / "docs" / "faults.md"
    assert "python -m benchmarks.faults" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_quantised_models_agree_though_rounding_makes_their_inputs_differ(recordings: Path) -> None:
    """The inputs of their matrix products land on other numbers of eight bits: an alarm where that is not known."""
    family, fault = "qwen3_moe-fp8-group-bfloat16", "weights_scaled"
    runs = [recordings / f"{family}-{name}" for name in ("plain", "eager-pieces2-fused-norm", fault)]
    entry = next(one for one in load("transformers") if one.name == fault)
    jobs = [
        Job(family, variant, run, ()) for variant, run in zip(("plain", "eager-pieces2-fused-norm"), runs, strict=False)
    ]
    assert not engine("transformers").record([*jobs, Job(family, "plain", runs[2], (entry.config,))])
    clean = judge(runs[0], runs[1])
    assert (clean.verdict, clean.nearest < 0.9) == ("agree", True)
    report = comparator.compare(runs[0], runs[1], token_aligner="smart", activation_dtype="none")
    assert not report.passed
    assert "round inputs of matrix products to float8_e4m3fn" in str(judge_notes(runs[0], runs[1]))
    assert judge(runs[1], runs[2]).place == entry.place


def judge_notes(baseline: Path, target: Path) -> tuple[str, ...]:
    diagnosis = comparator.compare(baseline, target, token_aligner="smart").diagnosis
    assert diagnosis is not None
    return diagnosis.notes

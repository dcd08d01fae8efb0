"""SGLang's own comparator and ours on the same dumps: the same verdicts, but for what is listed in ``intended.py``."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from comparator.cli import main
from tests.differential.batches import make_batch_scenario
from tests.differential.intended import knows
from tests.differential.layouts import World
from tests.differential.peers import (
    Outcome,
    Peer,
    category,
    compare_with_both,
    disagreements,
    installed_package,
    peer,
    released_package,
)
from tests.differential.run import check
from tests.differential.scenarios import Dump, Scenario, make_scenario

Make = Callable[[int, Path], Scenario]
TWO_RANKS = World("tp2", ({"tp": (0, 2)}, {"tp": (1, 2)}))
TWO_DATA_RANKS = World("dp2", ({"dp": (0, 2)}, {"dp": (1, 2)}), "megatron_parallel_info")
ONE_RANK = World("single", ({},))


@pytest.fixture(scope="module")
def installed() -> Iterator[Peer]:
    package = installed_package()
    if package is None:
        pytest.skip("sglang is not installed (requirements/dev.txt has it)")
    with peer(package) as running:
        yield running


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with peer(released_package("0.5.13.post1", tmp_path_factory.mktemp("sglang"))) as running:
        yield running


@pytest.mark.parametrize("make", [make_scenario, make_batch_scenario])
def test_a_few_scenarios(make: Make, installed: Peer, tmp_path: Path) -> None:
    for seed in range(6):
        folder = tmp_path / str(seed)
        scenario = make(seed, folder)
        assert check(scenario, installed, folder) == [], scenario


@pytest.mark.parametrize("make", [make_scenario, make_batch_scenario])
def test_sglangs_record_types_read_our_report(make: Make, installed: Peer, tmp_path: Path) -> None:
    for seed in range(20, 26):
        scenario = make(seed, tmp_path / str(seed))
        report = tmp_path / f"{seed}.jsonl"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main([*scenario.argv, "--report-path", str(report)])
        # NaN and infinity are null, which these types do not read in SGLang's own report either.
        refused = [one for one in installed.unreadable(report) if one.count("[type=") != one.count("[type=float_type")]
        assert refused == [], scenario


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_scenario, make_batch_scenario])
@pytest.mark.parametrize("first", range(100, 500, 100))
def test_hundreds_of_scenarios(make: Make, first: int, installed: Peer, tmp_path: Path) -> None:
    for seed in range(first, first + 100):
        folder = tmp_path / str(seed)
        scenario = make(seed, folder)
        assert check(scenario, installed, folder) == [], scenario
    if make is make_scenario:
        # A differential test proves little on scenarios that all pass. Where a side cannot be read there is no report.
        lines = [line for path in tmp_path.glob("*/ours.jsonl") for line in path.read_text("utf-8").splitlines()]
        found = Counter(record.get("category") for record in map(json.loads, lines))
        assert min(found[name] for name in ("passed", "failed", "skipped", "errored")) >= 5


@pytest.mark.slow
def test_an_older_release_says_the_same(older: Peer, tmp_path: Path) -> None:
    compared = 0
    for seed in range(200):
        folder = tmp_path / str(seed)
        scenario = make_scenario(seed, folder)
        if knows(scenario.flags, older=True):
            assert check(scenario, older, folder, older=True) == [], scenario
            compared += 1
    assert compared > 100


def _dumps(folder: Path, baseline: World, target: World) -> tuple[Dump, Dump]:
    paths = folder / "baseline", folder / "target"
    for path in paths:
        path.mkdir()
    return Dump(paths[0], baseline), Dump(paths[1], target)


def _categories(outcome: Outcome) -> Counter[str]:
    return Counter(str(finding.get("category") or category(finding)) for finding in outcome.findings)


def test_a_wrong_metric_is_noticed(installed: Peer, tmp_path: Path) -> None:
    sides = _dumps(tmp_path, ONE_RANK, ONE_RANK)
    for side, shift in zip(sides, (0.0, 0.125), strict=True):
        side.write(0, 0, "x", torch.ones(4, 4) + shift, "t h")
    scenario = Scenario(0, sides[0].path, sides[1].path, (), ())
    theirs, ours = compare_with_both(installed, scenario.argv, tmp_path)
    assert disagreements(theirs, ours) == []
    theirs.findings[0]["diff"]["rel_diff"] *= 1 + 1e-6
    assert [one.what for one in disagreements(theirs, ours)] == ["diff.rel_diff"]


def test_several_ranks_without_dims_are_skipped_as_there(installed: Peer, tmp_path: Path) -> None:
    sides = _dumps(tmp_path, TWO_RANKS, TWO_RANKS)
    for side in sides:
        for rank in range(2):
            side.write(0, rank, "x", torch.full((4, 4), float(rank)))
            side.write(0, rank, "y", torch.ones(4, 4), "t h # tp:replicated")
    theirs, ours = compare_with_both(installed, Scenario(0, sides[0].path, sides[1].path, (), ()).argv, tmp_path)
    for outcome in (theirs, ours):
        assert (outcome.exit_code, _categories(outcome)) == (0, {"skipped": 1, "passed": 1})


def test_request_ids_are_not_compared(installed: Peer, tmp_path: Path) -> None:
    sides = _dumps(tmp_path, ONE_RANK, ONE_RANK)
    for side in sides:
        side.write(0, 0, "rids", [side.path.name])
        side.write(0, 0, "y", torch.ones(4, 4), "t h")
    theirs, ours = compare_with_both(installed, Scenario(0, sides[0].path, sides[1].path, (), ()).argv, tmp_path)
    assert (theirs.exit_code, _categories(theirs)) == (1, {"failed": 1, "passed": 1})
    assert (ours.exit_code, _categories(ours)) == (0, {"skipped": 1, "passed": 1})


@pytest.mark.parametrize("fault", [0.0, 20.0])
def test_rows_of_several_data_parallel_ranks_need_known_tokens(fault: float, installed: Peer, tmp_path: Path) -> None:
    baseline, target = _dumps(tmp_path, ONE_RANK, TWO_DATA_RANKS)
    tensor = torch.arange(32.0).reshape(8, 4)
    baseline.write(0, 0, "x", tensor, "t h")
    target.write(0, 0, "x", tensor[:4], "t h")
    target.write(0, 1, "x", tensor[4:] + fault, "t h")
    theirs, ours = compare_with_both(installed, Scenario(0, baseline.path, target.path, (), ()).argv, tmp_path)
    assert _categories(theirs) == _categories(ours) == {"errored": 1}


@pytest.mark.parametrize("fault", [0.0, 0.5])
def test_smart_reads_decode_passes(fault: float, installed: Peer, tmp_path: Path) -> None:
    sides = _dumps(tmp_path, ONE_RANK, ONE_RANK)
    values = torch.randn(6, 8)
    prompt, generated = [5, 6, 7, 8], [9, 10]
    for number, side in enumerate(sides):
        rows = values + fault * number
        _write_pass(side, 0, prompt, 0, rows[:4])
        if number == 0:
            _write_pass(side, 1, generated[:1], 4, rows[4:5])
            _write_pass(side, 2, generated[1:], 5, rows[5:])
        else:
            _write_pass(side, 1, generated, 4, rows[4:])
    flags = ("--preset", "sglang_megatron", "--token-aligner", "smart")
    theirs, ours = compare_with_both(installed, Scenario(0, sides[0].path, sides[1].path, flags, ()).argv, tmp_path)
    assert theirs.error is not None
    assert _categories(ours) == {"failed" if fault else "passed": 1}
    assert ours.findings[0]["tokens"]["matched"] == 6


def _write_pass(side: Dump, step: int, token_ids: list[int], start: int, rows: torch.Tensor) -> None:
    side.write(step, 0, "input_ids", torch.tensor(token_ids))
    side.write(step, 0, "positions", torch.arange(start, start + len(token_ids)))
    side.write(step, 0, "seq_lens", torch.tensor([start + len(token_ids)]))
    side.write(step, 0, "rids", [f"{side.path.name}-request"])
    side.write(step, 0, "hidden", rows, "t h")

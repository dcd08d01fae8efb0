"""Compares what is recorded and keeps what the comparator says, one JSON line for each pair."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.faults.distinct import Digests
from benchmarks.faults.judging import Outcome, judge
from benchmarks.faults.places import clean_families, fault_pairs

SEED = 0


@dataclass(frozen=True)
class Judged:
    """What was said of one pair."""

    kind: str
    """``clean`` or ``faults``."""
    family: str
    baseline: str
    target: str
    """Paths below the root."""
    verdict: str
    place: str | None
    differs: bool
    message: str = ""
    fault: str | None = None
    """Engine and name."""
    expected: str | None = None
    """The place of the fault; None for a clean pair and for what is no fault."""
    same_numerics: bool = False
    size: float | None = None
    """Relative L2 error at the fault's tap; where the numerics are the same it is the fault's alone."""
    multiple: float | None = None
    """Error introduced at the fault's tap, as a multiple of its floor."""
    nearest: float = 0.0
    """The strongest test of all taps; from 1 on it is an alarm."""


def judge_all(root: Path, what: Sequence[str], pairs: int, only: str) -> None:
    """Compare every pair that has no outcome yet, and append it to ``outcomes.jsonl``."""
    path = root / "outcomes.jsonl"
    known = {(one.baseline, one.target) for one in read_outcomes(root)}
    with path.open("a", encoding="utf-8") as file:
        for one in _judged(root, what, pairs, only, known):
            file.write(json.dumps(asdict(one)) + "\n")
            file.flush()
            print(f"{one.baseline} {one.target}: {one.verdict} {one.place or ''} {one.expected or ''}", flush=True)


def read_outcomes(root: Path) -> list[Judged]:
    path = root / "outcomes.jsonl"
    if not path.exists():
        return []
    return [Judged(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _judged(root: Path, what: Sequence[str], pairs: int, only: str, known: set[tuple[str, str]]) -> Iterator[Judged]:
    def wanted(baseline: Path, target: Path) -> bool:
        names = str(baseline.relative_to(root)), str(target.relative_to(root))
        return names not in known and only in " ".join(names)

    if "faults" in what:
        for fault, family, baseline, target, same in fault_pairs(root):
            if wanted(baseline, target):
                outcome = judge(baseline, target, fault.place)
                expected = None if fault.place is None else str(fault.place)
                name = f"{fault.engine}/{fault.name}"
                yield _row(root, "faults", family, baseline, target, outcome, name, expected, same)
    if "clean" in what:
        for family, runs in clean_families(root):
            for baseline, target in chosen_pairs(runs, pairs, Digests(root / "digests.json")):
                if wanted(baseline, target):
                    yield _row(root, "clean", family, baseline, target, judge(baseline, target))


def _row(
    root: Path,
    kind: str,
    family: str,
    baseline: Path,
    target: Path,
    outcome: Outcome,
    fault: str | None = None,
    expected: str | None = None,
    same_numerics: bool = False,
) -> Judged:
    return Judged(
        kind=kind,
        family=family,
        baseline=str(baseline.relative_to(root)),
        target=str(target.relative_to(root)),
        verdict=outcome.verdict,
        place=None if outcome.place is None else str(outcome.place),
        differs=outcome.differs,
        message=outcome.message[:500],
        fault=fault,
        expected=expected,
        same_numerics=same_numerics,
        size=outcome.size,
        multiple=outcome.multiple,
        nearest=outcome.nearest,
    )


def chosen_pairs(runs: Sequence[Path], count: int, digest: Callable[[Path], str]) -> list[tuple[Path, Path]]:
    """At most ``count`` pairs of runs whose digests differ, the same ones every time."""
    representatives: dict[str, Path] = {}
    for run in runs:
        representatives.setdefault(digest(run), run)
    pairs = list(itertools.combinations(representatives.values(), 2))
    return random.Random(SEED).sample(pairs, min(count, len(pairs)))

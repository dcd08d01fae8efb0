"""The records of a report that are about a run as a whole, and the summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from comparator.diagnosis import Diagnosis
from comparator.match.runs import parallel_layout
from comparator.options import Options, Side
from comparator.report.findings import note_of
from comparator.report.records import (
    Comparison,
    ErroredComparison,
    InputIdsRecord,
    LogRecord,
    RankInfoRecord,
    SummaryRecord,
    TensorComparison,
)
from comparator.verdict.judge import Category, Said, say
from dumper.reading.protocol import Run


def notes_of_run(run: Run, options: Options) -> list[Said]:
    """What is wrong with a run as a whole, under the names of ``comparator.messages``."""
    found = [say(problem.kind.replace("_", "-"), problem.message, options) for problem in run.problems]
    if run.missing_ranks and not any(one.name == "missing-rank" for one in found):
        ranks = ", ".join(map(str, run.missing_ranks))
        found.append(say("missing-rank", f"no file of rank {ranks} in {run.path}", options))
    found.extend(say("tap-never-fired", f"tap {tap} never fired", options) for tap in run.silent_taps)
    return found


def run_notes(label: Side, said: Sequence[Said]) -> LogRecord | None:
    """What is wrong with a run as a record; None when nothing is."""
    notes = [note_of(Said(one.severity, one.name, f"{label}: {one.message}")) for one in said]
    if not notes:
        return None
    errors = [note for note in notes if note.kind == "error"]
    return LogRecord(errors=errors, infos=[note for note in notes if note.kind != "error"])


def rank_info(label: Side, run: Run) -> RankInfoRecord:
    """The ranks of a run and where each is on every axis."""
    rows = [
        {"rank": rank, **{axis: f"{at}/{size}" for axis, (at, size) in sorted(coordinates.items())}}
        for rank, coordinates in sorted(parallel_layout(run).items())
    ]
    return RankInfoRecord(label=label, rows=rows)


def input_ids(label: Side, run: Run, options: Options) -> InputIdsRecord | None:
    """Token ids and positions of every pass, from the token layouts; None when the run has none."""
    rows = []
    for step in run.steps:
        for rank in run.ranks if options.start_step <= step <= options.end_step else ():
            layout = run.layout(step, rank)
            if layout is None:
                continue
            ids = None if layout.token_ids is None else layout.token_ids.tolist()
            rows.append(
                {
                    "step": step,
                    "rank": rank,
                    "num_tokens": layout.rows,
                    "input_ids": "N/A" if ids is None else str(ids),
                    "positions": str(layout.row_identities()[1].tolist()),
                }
            )
    return InputIdsRecord(label=label, rows=rows) if rows else None


def earlier_of(known: Comparison | None, finding: Comparison) -> Comparison:
    """Which of two failures, given in the order of execution, comes first.

    Within a step one where the analysis says that error was introduced precedes those that inherit it.
    """
    if known is None:
        return finding
    same_step = known.location.step == finding.location.step
    return finding if same_step and _introduces(finding) and not _introduces(known) else known


def _introduces(finding: Comparison) -> bool:
    analysis = finding.analysis if isinstance(finding, TensorComparison) else None
    return analysis is not None and analysis.judged == "introduced-here"


@dataclass
class Tally:
    """Counts categories and decides the exit code as findings go by."""

    options: Options
    of_runs: Sequence[Said] = ()
    """What is wrong with the runs as a whole; an error among it makes the comparison fail."""
    counts: dict[Category, int] = field(default_factory=lambda: {"passed": 0, "failed": 0, "skipped": 0, "errored": 0})
    disallowed: bool = False
    first_divergence: Comparison | None = None

    def add(self, finding: Comparison) -> None:
        """Count a finding."""
        self.counts[finding.category] += 1
        allowed_failure = self.options.allow_failed_pattern
        if finding.category == "failed":
            allowed = allowed_failure is not None and re.fullmatch(allowed_failure, finding.name) is not None
            if not allowed:
                self.disallowed = True
                self.first_divergence = earlier_of(self.first_divergence, finding)
        elif isinstance(finding, ErroredComparison):
            self.disallowed |= finding.reason not in self.options.allow
        elif finding.category == "skipped" and re.fullmatch(self.options.allow_skipped_pattern, finding.name) is None:
            self.disallowed = True

    @property
    def exit_code(self) -> int:
        """0 when something was compared and all that counts agrees, else 1."""
        agrees = self.counts["passed"] > 0 and not self.disallowed
        return 0 if agrees and not any(one.severity == "error" for one in self.of_runs) else 1

    def summary(self, diagnosis: Diagnosis | None = None) -> SummaryRecord:
        """The last record of a report."""
        first = self.first_divergence
        place = None
        if first is not None:
            step = "" if first.location.step is None else f"step {first.location.step}: "
            place = step + first.label
            if isinstance(first, TensorComparison) and first.first_bad_token:
                place += f" at {first.first_bad_token}"
        said = []
        if not sum(self.counts.values()):
            said.append(say("nothing-to-compare", "nothing to compare", self.options))
        elif not self.counts["passed"] and not self.counts["failed"] and not self.counts["errored"]:
            said.append(say("nothing-in-common", "the runs have no tensor in common", self.options))
        return SummaryRecord(
            total=sum(self.counts.values()),
            passed=self.counts["passed"],
            failed=self.counts["failed"],
            skipped=self.counts["skipped"],
            errored=self.counts["errored"],
            exit_code=self.exit_code,
            first_divergence=place,
            first_divergence_tap=None if first is None else first.tap,
            verdict=None if diagnosis is None else diagnosis.verdict,
            errors=[note_of(one) for one in said],
        )

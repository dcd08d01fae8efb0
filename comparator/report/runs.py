"""The records of a report that are about a run as a whole, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from comparator.match.indexing import parallel_layout
from comparator.options import SIDES, Options, Side
from comparator.patterns import fullmatch
from comparator.plan.tokens.places import read_layout
from comparator.report.findings import note_of
from comparator.report.reasons import Reasons
from comparator.report.records import (
    AccountsRecord,
    Comparison,
    ErroredComparison,
    InputIdsRecord,
    LogRecord,
    NameRows,
    RankInfoRecord,
    RowAccount,
    SummaryRecord,
    TensorComparison,
    ValueComparison,
)
from comparator.rules import Rules
from comparator.verdict.accounts import Accounts, SideAccount, say_of_accounts
from comparator.verdict.judge import Category, Said, say
from dumper.reading.headers import MOST_NAMED
from dumper.reading.protocol import Run
from dumper.storage.places import Place

if TYPE_CHECKING:
    from comparator.diagnosis import Diagnosis

DAMAGE = frozenset({"truncated", "corrupted", "missing-records", "missing-rank", "lost", "unreadable", "repaired"})
"""Names of what may have taken records away."""
_OF_MEGATRON = frozenset({"cu_seqlens_q", "cu_seqlens_kv"})
"""Records by which a dump of Megatron's is known."""


def notes_of_run(run: Run, options: Options, rules: Rules) -> list[Said]:
    """What is wrong with a run as a whole, under the names of ``comparator.messages``.

    Under the rules of SGLang's comparator only what ``--error`` names fails a comparison.
    """
    found = [say(problem.kind.replace("_", "-"), problem.message, options) for problem in run.problems]
    if run.missing_ranks and not any(one.name == "missing-rank" for one in found):
        ranks = ", ".join(map(str, run.missing_ranks))
        found.append(say("missing-rank", f"no file of rank {ranks} in {run.path}", options))
    if not rules.strict_runs:
        found = [
            replace(one, severity="warning") if one.severity == "error" and one.name not in options.error else one
            for one in found
        ]
    found.extend(say("tap-never-fired", f"tap {tap} never fired", options) for tap in run.silent_taps)
    return found


def notes_of_dumps(given: Mapping[Side, Place], runs: Mapping[Side, Run], options: Options) -> list[Said]:
    """Which folder was taken where one holds the dump, and what of the batches is missing or assumed."""
    said = [
        say("other-folder", f"auto-descend {side}_path: {given[side]} holds the dump in {runs[side].path}", options)
        for side in SIDES
        if _resolved(given[side]) != _resolved(runs[side].path)
    ]
    if options.token_aligner != "smart":
        return said
    without = [side for side in SIDES if not _has_layouts(runs[side])]
    if without:
        message = f"{' and '.join(without)}: no record of the batches that tokens could be joined by"
        return [*said, say("no-batch-records", message, options)]
    message = "neither qkv_format nor input_ids of two dimensions say how a batch lies; it is taken for packed tokens"
    return said + [say("layout-assumed", f"{side}: {message}", options) for side in SIDES if _is_assumed(runs[side])]


def _resolved(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place


def _has_layouts(run: Run) -> bool:
    return any(run.layout(step, rank) is not None for step in run.steps for rank in run.ranks)


def _is_assumed(run: Run) -> bool:
    names = {record.name for record in run.records}
    if not names & _OF_MEGATRON or "qkv_format" in names:
        return False
    ids = next((record for record in run.records if record.name == "input_ids"), None)
    return ids is not None and len(ids.shape or ()) == 1


def run_notes(label: Side | None, said: Sequence[Said]) -> LogRecord | None:
    """What is wrong with a run (or, without one, with the switches) as a record; None when nothing is."""
    notes = [
        note_of(Said(one.severity, one.name, one.message if label is None else f"{label}: {one.message}"))
        for one in said
    ]
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
            layout = read_layout(run, step, rank)
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


def earlier_failure(known: Mapping[str, Any] | None, finding: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same for failures as JSON objects."""
    if known is None:
        return finding
    same_step = (known.get("location") or {}).get("step") == (finding.get("location") or {}).get("step")
    introduces = [(one.get("analysis") or {}).get("judged") == "introduced-here" for one in (known, finding)]
    return finding if same_step and introduces[1] and not introduces[0] else known


def _introduces(finding: Comparison) -> bool:
    analysis = finding.analysis if isinstance(finding, TensorComparison) else None
    return analysis is not None and analysis.judged == "introduced-here"


class Tally(Struct):
    """Counts categories and decides the exit code as findings go by."""

    options: Options
    rules: Rules
    of_runs: Mapping[Side, Sequence[Said]]
    """What is wrong with each run as a whole; an error among it makes the comparison fail."""
    of_map: Sequence[Said] = ()
    """What is wrong with the map and other switches that name records."""
    counts: dict[Category, int] = field(default_factory=lambda: {"passed": 0, "failed": 0, "skipped": 0, "errored": 0})
    environment: Sequence[str] = ()
    """What differs between the runs beside their tensors; said when the comparison fails."""
    disallowed: bool = False
    first_divergence: Comparison | None = None
    first_different: str | None = None
    """What first, in the order of execution, is not the same bit by bit."""
    seen_identical: bool = False
    seen_reduced: bool = False
    """Whether of some values only statistics or rows were compared, which tell nothing of the other bits."""
    failures: int = 0
    """Findings that make the comparison fail."""
    accounts: Accounts | None = None
    reasons: Reasons = field(default_factory=Reasons)
    runs: Sequence[Run] = ()
    """Both sides, whose files should be at the end what they were at the beginning."""
    _concluded: list[Said] = field(default_factory=list)

    def add(self, finding: Comparison) -> None:
        """Count a finding."""
        self.counts[finding.category] += 1
        before, self.disallowed = self.disallowed, False
        self._judge(finding)
        self.failures += self.disallowed
        self.reasons.look_at(finding)
        if self.disallowed:
            self.reasons.add(finding)
        self.disallowed |= before
        self._look_for_difference(finding)

    def _judge(self, finding: Comparison) -> None:
        allowed_failure = self.options.allow_failed_pattern
        if finding.category == "failed":
            allowed = allowed_failure is not None and fullmatch(allowed_failure, finding.name)
            if not allowed:
                self.disallowed = True
                self.first_divergence = earlier_of(self.first_divergence, finding)
        elif isinstance(finding, ErroredComparison):
            self.disallowed |= finding.reason not in self.options.allow
        elif finding.category == "skipped" and self.options.allow_skipped_pattern is not None:
            self.disallowed |= not fullmatch(self.options.allow_skipped_pattern, finding.name)

    def stop(self, failures: int) -> None:
        """Say that the report ended before the comparison did."""
        message = f"stopped after {failures} failures (--max-fail); the counts are those until then"
        self._concluded = [say("stopped-early", message, self.options)]

    def interrupt(self) -> None:
        """Say that somebody ended the comparison."""
        message = "interrupted; the counts are those of what was compared until then"
        self._concluded = [say("interrupted", message, self.options)]

    def _look_for_difference(self, finding: Comparison) -> None:
        if self.first_different is not None or finding.category not in ("passed", "failed"):
            return
        reduced = isinstance(finding, TensorComparison) and finding.level not in ("full", "hash", "checksum")
        self.seen_reduced |= reduced
        self.seen_identical |= not reduced and not is_different(finding)
        if is_different(finding):
            step = "" if finding.location.step is None else f" step {finding.location.step}"
            self.first_different = finding.label + step

    def conclude(self, accounts: Accounts) -> None:
        """Take the accounts of the comparison, once it is complete."""
        self.accounts = accounts
        self._concluded = say_of_changes(self.runs, self.options)
        if not sum(self.counts.values()):
            message = "no record of either run is selected by the steps and the filter"
            self._concluded += [say("nothing-to-compare", message, self.options)]
            return
        if not self.counts["passed"] and not self.counts["failed"] and not self.counts["errored"]:
            message = "the runs have no tensor in common"
            self._concluded += [say("nothing-in-common", message, self.options)]
        if self.rules.strict_runs:
            damaged = {side for side in SIDES if any(one.name in DAMAGE for one in self.of_runs[side])}
            self._concluded += say_of_accounts(accounts, self.options, frozenset(damaged))

    def _bits(self) -> str | None:
        """One sentence on where the runs first differ, however little; None where nothing was compared."""
        if self.first_different is None:
            whole = "everything that was compared whole" if self.seen_reduced else "everything that was compared"
            return f"{whole} is bit-identical" if self.seen_identical else None
        if not self.seen_identical:
            return f"not bit-identical from the start: {self.first_different}"
        return f"bit-identical up to {self.first_different}"

    @property
    def exit_code(self) -> int:
        """0 when something was compared and all that counts agrees, else 1."""
        agrees = self.counts["passed"] > 0 and not self.disallowed
        return 0 if agrees and not self._errors else 1

    @property
    def _errors(self) -> list[Said]:
        """What is wrong with the runs and the comparison as a whole."""
        said = (*self.of_runs["baseline"], *self.of_runs["target"], *self.of_map, *self._concluded)
        return [one for one in said if one.severity == "error"]

    def around(self, diagnosis: Diagnosis | None) -> tuple[str, str]:
        """What the paragraph in words begins and ends with, so that it and the exit code say the same."""
        return self.reasons.before(), self.reasons.after(diagnosis, self.exit_code, self._errors)

    def as_far_as_it_matters(self, diagnosis: Diagnosis) -> Diagnosis:
        """Without how far it reaches, where all that was compared is the same."""
        if diagnosis.verdict == "undecided" or self.first_different is not None or self.exit_code:
            return diagnosis
        return replace(diagnosis, trained=None)

    def summary(self, diagnosis: Diagnosis | None = None) -> SummaryRecord:
        """The last record of a report."""
        first = self.first_divergence
        place = None
        if first is not None:
            step = "" if first.location.step is None else f"step {first.location.step}: "
            place = step + first.label
            if isinstance(first, TensorComparison) and first.first_bad_token:
                place += f" at {first.first_bad_token}"
        names = () if self.accounts is None else self.accounts.names
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
            first_different=self.first_different,
            bits=self._bits(),
            only_baseline=[account.name for account in names if account.lacks("target")],
            only_target=[account.name for account in names if account.lacks("baseline")],
            beside_tensors=list(self.environment) if self.exit_code else [],
            errors=[note_of(one) for one in self._concluded if one.severity == "error"],
            infos=[note_of(one) for one in self._concluded if one.severity != "error"],
        )


def say_of_changes(runs: Sequence[Run], options: Options) -> list[Said]:
    """What others have done to the files of the runs meanwhile."""
    changed = [f"{run.path}: {what}" for run in runs for what in run.changed_files]
    message = f"{'; '.join(changed[:MOST_NAMED])}; compare again once nothing writes to the run"
    return [say("changed-while-read", message, options)] if changed else []


def is_different(finding: Comparison) -> bool:
    """Whether the values of both sides are known to differ in any way, rounding included."""
    if isinstance(finding, TensorComparison):
        if finding.baseline.dtype != finding.target.dtype or finding.shape_mismatch:
            return True
        if finding.diff is None or finding.level != "full":
            return finding.category != "passed" or (finding.diff is not None and finding.diff.max_abs_diff != 0)
        return finding.diff.differing != 0
    return isinstance(finding, ValueComparison) and not finding.values_equal


def accounts_record(accounts: Accounts) -> AccountsRecord:
    """What became of every row that was recorded, by name."""

    def of_side(account: SideAccount) -> RowAccount:
        return RowAccount(recorded=account.recorded, compared=account.compared, left_out=dict(account.left_out))

    return AccountsRecord(
        names=[
            NameRows(name=one.name, baseline=of_side(one.sides["baseline"]), target=of_side(one.sides["target"]))
            for one in accounts.names
        ]
    )

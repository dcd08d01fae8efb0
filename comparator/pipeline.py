"""Run a whole comparison: one finding after the other, then the summary. Memory holds one pair at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from comparator.match.pairs import BundlePair, match_bundles
from comparator.match.runs import RunView, parallel_layout
from comparator.options import Options, check_options
from comparator.pairs import compare_pair
from comparator.plan.pair import SideContext
from comparator.plan.tokens import build_token_aligner
from comparator.plan.tokens.interface import Side, SideLayouts, TokenAligner
from comparator.report.records import (
    Category,
    Comparison,
    InputIdsRecord,
    LogRecord,
    Note,
    RankInfoRecord,
    SummaryRecord,
    TensorComparison,
)
from comparator.session import Session
from comparator.sglang_compat import adapt, compare_sglang_pair, match_sglang_bundles, without_batches


@dataclass
class Tally:
    """Counts categories and decides the exit code as findings go by."""

    options: Options
    counts: dict[Category, int] = field(default_factory=lambda: {"passed": 0, "failed": 0, "skipped": 0, "errored": 0})
    disallowed: bool = False
    first_divergence: Comparison | None = None
    silent_taps: tuple[str, ...] = ()

    def add(self, finding: Comparison) -> None:
        self.counts[finding.category] += 1
        allowed_failure = self.options.allow_failed_pattern
        if finding.category == "failed":
            allowed = allowed_failure is not None and re.fullmatch(allowed_failure, finding.name) is not None
            if not allowed:
                self.disallowed = True
                self.first_divergence = self.first_divergence or finding
        elif finding.category == "errored" or (
            finding.category == "skipped" and re.fullmatch(self.options.allow_skipped_pattern, finding.name) is None
        ):
            self.disallowed = True

    @property
    def exit_code(self) -> int:
        """0 when something was compared and all that counts agrees, else 1."""
        agrees = self.counts["passed"] > 0 and not self.disallowed
        return 0 if agrees and not (self.options.strict_taps and self.silent_taps) else 1

    def summary(self) -> SummaryRecord:
        first = self.first_divergence
        place = None
        if first is not None:
            step = "" if first.location.step is None else f"step {first.location.step}: "
            place = step + first.label
            if isinstance(first, TensorComparison) and first.first_bad_token:
                place += f" at {first.first_bad_token}"
        notes = []
        if not sum(self.counts.values()):
            notes.append(Note(kind="error", category="empty", message="nothing to compare"))
        elif not self.counts["passed"] and not self.counts["failed"] and not self.counts["errored"]:
            notes.append(Note(kind="error", category="nothing_in_common", message="the runs have no tensor in common"))
        return SummaryRecord(
            total=sum(self.counts.values()),
            passed=self.counts["passed"],
            failed=self.counts["failed"],
            skipped=self.counts["skipped"],
            errored=self.counts["errored"],
            exit_code=self.exit_code,
            first_divergence=place,
            first_divergence_tap=None if first is None else first.tap,
            errors=notes,
        )


@dataclass(frozen=True)
class Prepared:
    """A comparison that is planned as far as the index goes."""

    baseline: RunView
    target: RunView
    options: Options
    pairs: Sequence[BundlePair]
    session: Session
    compare: Callable[[BundlePair, Session], list[Comparison]] = compare_pair

    def findings(self) -> Iterator[Comparison]:
        """Compare pair by pair, in the order of execution."""
        for pair in self.pairs:
            yield from self.compare(pair, self.session)


def prepare(baseline: RunView, target: RunView, options: Options, aligner: TokenAligner | None = None) -> Prepared:
    """Match the bundles of two runs and make ready what every pair needs.

    Raises ComparatorError for options, or a map, that cannot be read.
    """
    check_options(options)
    if options.map_config is not None:
        from comparator.match.map import apply_map

        baseline = apply_map(baseline, options.map_config, "baseline")
        target = apply_map(target, options.map_config, "target")
    options = adapt(options, baseline, target)
    baseline, target = without_batches(baseline, target)
    contexts: dict[Side, SideContext] = {
        "baseline": SideContext.of("baseline", baseline, by_rank="rank" not in options.grouping_skip_keys),
        "target": SideContext.of("target", target, by_rank="rank" not in options.grouping_skip_keys),
    }
    if aligner is None:
        mode = options.token_aligner if options.joins_steps else "per_step"
        aligner = build_token_aligner(mode, _layouts(baseline, options), _layouts(target, options))
    session = Session(options, contexts, aligner)
    if options.sglang_rules:
        pairs = match_sglang_bundles(baseline, target, options)
        return Prepared(baseline, target, options, pairs, session, compare_sglang_pair)
    return Prepared(baseline, target, options, match_bundles(baseline, target, options), session)


def _layouts(run: RunView, options: Options) -> SideLayouts:
    steps = tuple(step for step in run.steps if options.start_step <= step <= options.end_step)
    return SideLayouts(run, parallel_layout(run), steps)


def run_notes(label: Side, run: RunView, options: Options) -> LogRecord | None:
    """What is wrong with a run as a whole; None when nothing is."""
    notes = [
        Note(kind="warning", category=str(problem.kind), message=f"{label}: {problem.message}")
        for problem in run.problems
    ]
    if run.missing_ranks and not any(note.category == "missing_rank" for note in notes):
        ranks = ", ".join(map(str, run.missing_ranks))
        notes.append(
            Note(kind="warning", category="missing_rank", message=f"{label}: no file of rank {ranks} in {run.path}")
        )
    kind = "error" if options.strict_taps else "warning"
    notes.extend(
        Note(kind=kind, category="silent_tap", message=f"{label}: tap {tap} never fired")  # type: ignore[arg-type]
        for tap in run.silent_taps
    )
    if not notes:
        return None
    errors = [note for note in notes if note.kind == "error"]
    return LogRecord(errors=errors, infos=[note for note in notes if note.kind != "error"])


def rank_info(label: Side, run: RunView) -> RankInfoRecord:
    """The ranks of a run and where each is on every axis."""
    rows = [
        {"rank": rank, **{axis: f"{at}/{size}" for axis, (at, size) in sorted(coordinates.items())}}
        for rank, coordinates in sorted(parallel_layout(run).items())
    ]
    return RankInfoRecord(label=label, rows=rows)


def input_ids(label: Side, run: RunView, options: Options) -> InputIdsRecord | None:
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

"""The Python API: ``compare`` and ``assert_runs_match``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from comparator.arguments import parse_override
from comparator.errors import ComparatorError
from comparator.options import Options, ThresholdRule, TokenMode
from comparator.pipeline import begin
from comparator.prepared import OtherRuns, prepare
from comparator.report.diagnosis import in_words
from comparator.report.environment import environment_lines
from comparator.report.records import (
    Comparison,
    ErroredComparison,
    LogRecord,
    NameRows,
    SkippedComparison,
    SummaryRecord,
    TensorComparison,
)
from comparator.report.runs import Tally, accounts_record, earlier_of, run_notes
from comparator.verdict.criteria import parse_rules
from dumper.reading.protocol import Run, RunError
from dumper.storage.places import Workers
from tensortap.lost_pages import watching
from tensortap.printable import printable
from tensortap.progress import Progress, silent

if TYPE_CHECKING:
    import polars

    from comparator.diagnosis import Calibration, Diagnosis, ReferenceDiagnosis

MOST_ROWS = 50
"""Tensors that a report shows in a notebook."""
PathOrRun = str | os.PathLike[str] | Run


class Report(Struct, frozen=True):
    """All findings of a comparison, in the target's order of execution."""

    findings: tuple[Comparison, ...]
    summary: SummaryRecord
    logs: tuple[LogRecord, ...] = ()
    """Findings about the runs themselves: missing ranks, damaged files, silent taps."""
    diagnosis: Diagnosis | None = None
    """Whether the runs agree, and where error was introduced; None for two dumps of SGLang's own."""
    reference: ReferenceDiagnosis | None = None
    """What a reference says of both sides; None without one."""
    accounts: tuple[NameRows, ...] = ()
    """What became of every row that was recorded, by name."""
    words: str = ""
    """One paragraph: whether the runs agree, and if not where and how they part; empty without a diagnosis."""

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def passed(self) -> bool:
        """Whether the runs agree: the command line would exit with 0."""
        return self.summary.exit_code == 0

    def of(self, category: str) -> tuple[Comparison, ...]:
        """The findings of one category: passed, failed, skipped or errored."""
        return tuple(finding for finding in self.findings if finding.category == category)

    @property
    def first_divergence(self) -> Comparison | None:
        """The first failed finding in the order of execution; None when nothing failed.

        Within its step the one of the tap where error was introduced, where that is known.
        """
        first: Comparison | None = None
        for finding in self.of("failed"):
            first = earlier_of(first, finding)
        return first

    def to_polars(self) -> polars.DataFrame:
        """One row per finding: name, tags, step, category and the metrics (null where there are none)."""
        import polars

        rows = [_row(finding) for finding in self.findings]
        schema: dict[str, Any] = {
            "name": polars.String,
            "tags": polars.String,
            "step": polars.Int64,
            "category": polars.String,
            "rel": polars.Float64,
            "max_abs": polars.Float64,
            "mean_abs": polars.Float64,
            "relative_l2": polars.Float64,
            "baseline_shape": polars.List(polars.Int64),
            "target_shape": polars.List(polars.Int64),
            "reason": polars.String,
        }
        return polars.DataFrame(rows, schema=schema)

    def describe(self, limit: int = 20) -> str:
        """The summary, where the runs part, and the findings that are not passed, as text."""
        from comparator.report.text import finding_line, first_difference_lines, summary_line, summary_lines

        bad = [finding for finding in self.findings if finding.category in ("failed", "errored")]
        lines = [summary_line(self.summary), *first_difference_lines(self.summary, self.first_divergence)]
        lines.extend(summary_lines(self.summary))
        lines.extend(note.message for log in self.logs for note in log.errors)
        if self.words:
            lines.append(self.words)
        lines.extend(finding_line(finding) for finding in bad[:limit])
        if len(bad) > limit:
            lines.append(f"... and {len(bad) - limit} more")
        return "\n".join(map(printable, lines))

    def __repr__(self) -> str:
        from comparator.report.text import summary_line

        where = self.summary.first_divergence
        return f"<Report: {printable(summary_line(self.summary) + (f'; first difference: {where}' if where else ''))}>"

    def _repr_html_(self) -> str:
        """For notebooks: the text of ``describe``, and a row for each tensor that does not agree."""
        import html

        from comparator.report.text import finding_line

        bad = [finding for finding in self.findings if finding.category in ("failed", "errored")]
        rows = "".join(f"<tr><td>{html.escape(printable(finding_line(one)))}</td></tr>" for one in bad[:MOST_ROWS])
        colour = "green" if self.passed else "crimson"
        heading = html.escape(self.describe(limit=0).split("\n... and")[0])
        return f'<pre style="color:{colour}">{heading}</pre>' + (f"<table>{rows}</table>" if rows else "")


def _row(finding: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": finding.name,
        "tags": " ".join(f"{key}={value}" for key, value in finding.tags.items()),
        "step": finding.location.step,
        "category": finding.category,
    }
    if isinstance(finding, TensorComparison):
        row |= {"baseline_shape": finding.baseline.shape, "target_shape": finding.target.shape}
        if finding.diff is not None:
            row |= {
                "rel": finding.diff.rel_diff,
                "max_abs": finding.diff.max_abs_diff,
                "mean_abs": finding.diff.mean_abs_diff,
                "relative_l2": finding.diff.relative_l2,
            }
        row["reason"] = "; ".join(note.message for note in finding.errors) or None
    elif isinstance(finding, ErroredComparison):
        row["reason"] = finding.exception_message or None
    elif isinstance(finding, SkippedComparison):
        row["reason"] = finding.message or None
    return row


def compare(
    baseline: PathOrRun,
    target: PathOrRun,
    *,
    options: Options | None = None,
    token_aligner: TokenMode | None = None,
    diff_threshold: float | str | Sequence[str] | None = None,
    override_dims: Sequence[str] = (),
    reference: PathOrRun | None = None,
    noise: Sequence[PathOrRun] = (),
    calibration: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Report:
    """Compare two recorded runs and return all findings.

    ``baseline`` is the run that is taken as right. Both are paths or what ``open_run`` returned: runs of ours, or
    directories of SGLang's ``.pt`` files; where both are these, the rules of SGLang's comparator hold.

    - ``token_aligner``: ``"per_step"`` compares step by step, ``"concat_steps"`` joins the steps of one request in
      order, ``"smart"`` joins tokens by identity, whatever batches and steps they were computed in.
    - ``diff_threshold``: the largest ``rel``, one criterion for all tensors (``"max_abs <= 1e-3"``), or pattern and
      criterion in turn; the first whole match of a name wins. Without one the analysis of all pairs decides
      (``docs/tolerances.md``), and integers must be equal.
    - ``override_dims``: ``NAME:DIMS``, dims in place of the recorded ones for names that NAME is found in.
    - ``reference``: a run of the same model in higher precision, which says which side is wrong.
    - ``noise``: repeats or benign variants of the baseline: what they differ by is no fault.
    - ``calibration``: a file that ``comparator calibrate`` wrote.
    - ``settings``: any other field of ``Options``, such as ``filter``, ``start_step``, ``equal_nan`` or ``allow``;
      they win over ``options``.

    A tensor that differs, cannot be compared or is on one side only is a finding and no exception. Memory holds the
    tensors of one name and its tags at a time. Raises ComparatorError when a run cannot be read, and for options that
    make no sense.
    """
    chosen = options or Options()
    if token_aligner is not None:
        chosen = replace(chosen, token_aligner=token_aligner)
    if diff_threshold is not None:
        chosen = replace(chosen, diff_threshold=_rules(diff_threshold))
    if override_dims:
        chosen = replace(chosen, overrides=tuple(parse_override(text, "both") for text in override_dims))
    try:
        chosen = replace(chosen, **settings)
    except TypeError as error:
        raise ComparatorError(f"unknown setting: {error}") from None
    with watching():  # a file that is cut meanwhile must not end the program that asks
        return _compared(*open_sides(baseline, target), chosen, open_others(reference, noise, calibration))


def _compared(baseline: Run, target: Run, options: Options, others: OtherRuns) -> Report:
    prepared = prepare(baseline, target, options, others=others)
    said = prepared.notes()
    environment = environment_lines(prepared.baseline, prepared.target)
    runs = (prepared.baseline, prepared.target)
    tally = Tally(prepared.options, prepared.rules, said, prepared.unused, environment=environment, runs=runs)
    comparing = begin(prepared)
    findings: list[Comparison] = []
    for finding in comparing:
        tally.add(finding)
        findings.append(finding)
    tally.conclude(comparing.accounts)
    logs = [
        run_notes("baseline", said["baseline"]),
        run_notes("target", said["target"]),
        run_notes(None, prepared.unused),
    ]
    diagnosis, words = comparing.diagnosis, ""
    if diagnosis is not None:
        bitwise, around = prepared.options.bitwise, tally.around(diagnosis)
        diagnosis = tally.as_far_as_it_matters(diagnosis)
        words = in_words(diagnosis, comparing.reference, bitwise=bitwise, around=around)
    return Report(
        tuple(findings),
        tally.summary(diagnosis),
        tuple(log for log in logs if log is not None),
        diagnosis,
        comparing.reference,
        tuple(accounts_record(comparing.accounts).names),
        words,
    )


def assert_runs_match(baseline: PathOrRun, target: PathOrRun, **settings: Any) -> Report:
    """Compare two runs as ``compare`` does; AssertionError lists what does not agree."""
    report = compare(baseline, target, **settings)
    if not report.passed:
        raise AssertionError(report.describe())
    return report


def _rules(threshold: float | str | Sequence[str]) -> tuple[ThresholdRule, ...]:
    if isinstance(threshold, str):
        return parse_rules([".*", threshold])
    if isinstance(threshold, int | float):
        return parse_rules([str(threshold)])
    return parse_rules(list(threshold))


def open_others(
    reference: PathOrRun | None,
    noise: Sequence[PathOrRun],
    calibration: str | os.PathLike[str] | None,
    workers: Workers | None = None,
) -> OtherRuns:
    """Open the runs beside a pair; raises ComparatorError that names what cannot be read."""
    floors = None if calibration is None else _floors(Path(calibration))
    return OtherRuns(
        None if reference is None else open_side(reference, "reference", workers=workers),
        tuple(open_side(run, "noise run", workers=workers) for run in noise),
        floors,
    )


def _floors(path: Path) -> Calibration:
    from comparator.diagnosis import CalibrationError, read_calibration

    try:
        return read_calibration(path)
    except CalibrationError as error:
        raise ComparatorError(str(error)) from None


def open_sides(
    baseline: PathOrRun, target: PathOrRun, progress: Progress = silent, workers: Workers | None = None
) -> tuple[Run, Run]:
    """Open the runs that are compared, as ``open_side`` does."""
    return open_side(baseline, "baseline", progress, workers), open_side(target, "target", progress, workers)


def open_side(source: PathOrRun, label: str, progress: Progress = silent, workers: Workers | None = None) -> Run:
    """Open a run; raises ComparatorError that names the path when that is not possible. ``workers`` read its index."""
    if not isinstance(source, str | os.PathLike):
        return source
    from dumper.reading.open import open_run

    try:
        run: Run = open_run(source, progress, workers)
    except (OSError, ValueError, RunError) as error:
        raise ComparatorError(f"{label}: {error}") from None
    if not len(run.records):
        problems = "; ".join(str(problem.message) for problem in run.problems)
        raise ComparatorError(f"{label}: the run {run.path} holds no records{': ' + problems if problems else ''}")
    run.read_ahead()
    return run

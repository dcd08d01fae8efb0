"""Findings as text for people: one line each, and what stands out below it."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from comparator.report.diagnosis_fields import TapAnalysis
from comparator.report.records import (
    AccountsRecord,
    Comparison,
    DiffInfo,
    ErroredComparison,
    LogRecord,
    SkippedComparison,
    SummaryRecord,
    TensorComparison,
    TokenCounts,
    ValueComparison,
)

MOST_NAMES = 10
"""Names that one line of the summary lists."""
Verbosity = Literal["minimal", "normal", "verbose"]
STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow", "errored": "bold magenta"}
"""Colours of the categories on a terminal."""


def finding_line(finding: Comparison) -> str:
    """One line: category, step, tensor, and the numbers or the reason."""
    step = "" if finding.location.step is None else f"step {finding.location.step}  "
    return f"{finding.category:<8}{step}{finding.label}  {_essence(finding)}".rstrip()


def _essence(finding: Comparison) -> str:
    if isinstance(finding, TensorComparison):
        return _tensor_essence(finding)
    if isinstance(finding, ValueComparison):
        if finding.values_equal:
            return f"equal: {_short(finding.baseline_value)}"
        where = f" at {finding.difference_path}" if finding.difference_path else ""
        return f"values differ{where}: {_short(finding.baseline_value)} against {_short(finding.target_value)}"
    if isinstance(finding, SkippedComparison):
        return finding.message or finding.reason
    return finding.exception_message


def _tensor_essence(finding: TensorComparison) -> str:
    if finding.shape_mismatch:
        return f"shapes differ: {finding.unified_shape} against {finding.target.shape}"
    if finding.category == "failed" and finding.errors and (finding.diff is None or finding.diff.max_abs_diff == 0):
        return finding.errors[0].message  # numbers that do not differ would hide it
    tokens = f"  {counted(finding.tokens.matched, 'token')}" if finding.tokens else ""
    if finding.level == "checksum":
        return f"equal bytes, by checksum{tokens}"
    return (_metrics(finding.diff) if finding.diff else f"at level {finding.level}") + tokens


def _metrics(diff: DiffInfo) -> str:
    return f"rel {diff.rel_diff:.3g}  max_abs {diff.max_abs_diff:.3g}  mean_abs {diff.mean_abs_diff:.3g}"


def finding_details(finding: Comparison, verbosity: Verbosity) -> list[str]:
    """Further lines: for failures always (unless minimal), for the rest when verbose."""
    if verbosity == "minimal":
        return []
    lines: list[str] = []
    if isinstance(finding, TensorComparison):
        lines.extend(_tensor_details(finding, verbosity))
    if isinstance(finding, ErroredComparison):
        lines.extend([f"hint: {finding.hint}"] if finding.hint else [])
        if finding.traceback_str and finding.traceback_str != finding.hint and verbosity == "verbose":
            lines.extend(finding.traceback_str.rstrip().splitlines())
    if finding.errors:
        lines.extend(note.message for note in finding.errors)
    if finding.infos:
        shown = ("warning",) if verbosity == "normal" and finding.category == "passed" else ("warning", "info")
        lines.extend(note.message for note in finding.infos if note.kind in shown)
    return lines


def analysis_line(analysis: TapAnalysis) -> str:
    """Where the error of a tap comes from, in one line."""
    said = {
        "introduced-here": "introduced here",
        "inherited-from": f"inherited from {analysis.source}",
        "after-a-routing-flip": "after a routing flip",
        "within-rounding": "within rounding",
        "not-judged": "not judged",
    }[analysis.judged]
    line = f"{said}: most rows are the same on both sides"
    if analysis.error:
        line = (
            f"{said}: error {analysis.error:.2g} of a row, of which its inputs explain {analysis.inherited:.2g}; "
            f"{analysis.multiple:.3g} times the floor of {analysis.floor:.2g}"
        )
    test = analysis.test
    if analysis.judged == "introduced-here" and test is not None:
        where = f" at {test.where}" if test.where else ""
        line += f"; {test.name}{where} reaches {test.strength:.3g} times its threshold"
    return line


def _tensor_details(finding: TensorComparison, verbosity: Verbosity) -> list[str]:
    lines: list[str] = []
    diff = finding.diff
    if finding.analysis is not None and (finding.category == "failed" or verbosity == "verbose"):
        lines.append(analysis_line(finding.analysis))
    if diff is not None and (finding.category == "failed" or verbosity == "verbose"):
        token = f" ({diff.max_diff_token})" if diff.max_diff_token else ""
        lines.append(
            f"criterion {diff.predicate}; largest difference at {diff.max_diff_coord}{token}: "
            f"{diff.baseline_at_max:.6g} against {diff.target_at_max:.6g}; relative L2 error {diff.relative_l2:.3g}; "
            f"{diff.differing} elements differ"
        )
        if diff.abs_diff_percentiles:
            listed = ", ".join(f"p{at} {value:.3g}" for at, value in diff.abs_diff_percentiles.items())
            lines.append(f"absolute differences: {listed}")
    if finding.first_bad_token:
        lines.append(f"first token beyond the threshold: {finding.first_bad_token}")
    for check in finding.replicated_checks:
        if not check.passed:
            gap = f"differ by {check.diff.max_abs_diff:.3g}" if check.diff else "have other shapes"
            lines.append(
                f"{check.side}: replicas over {check.axis} {gap} (replica {check.compared_index} of group "
                f"{check.group_index}); they should be the same"
            )
    if finding.diff_downcast is not None and finding.category == "failed":
        lines.append(f"as {finding.downcast_dtype}: {_metrics(finding.diff_downcast)}")
    if verbosity == "verbose" and finding.level != "checksum":
        for label, side in (("baseline", finding.baseline), ("target", finding.target)):
            stats = side.stats
            lines.append(
                f"{label} {side.dtype} {side.shape}: mean {stats.mean:.4g} std {stats.std:.4g} "
                f"min {stats.min:.4g} max {stats.max:.4g}"
            )
    tokens = finding.tokens
    if tokens is not None and (tokens.only_baseline or tokens.only_target):
        lines.extend(_token_details(tokens))
    return lines


def _token_details(tokens: TokenCounts) -> list[str]:
    return [
        f"only the {side} has " + ", ".join(f"{counted(count, 'token')} ({reason})" for reason, count in only.items())
        for side, only in (("baseline", tokens.only_baseline), ("target", tokens.only_target))
        if only
    ]


def account_lines(accounts: AccountsRecord) -> list[str]:
    """Per side that left rows out: how many were compared, and the others by reason, over all tensors."""
    lines = []
    for side in ("baseline", "target"):
        rows = [one.baseline if side == "baseline" else one.target for one in accounts.names]
        left_out: Counter[str] = Counter()
        for one in rows:
            left_out.update(one.left_out)
        if left_out:
            listed = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
            compared, recorded = sum(one.compared for one in rows), sum(one.recorded for one in rows)
            lines.append(f"{side}: {compared} of {recorded} rows compared; left out: {listed}")
    return lines


def first_difference_lines(summary: SummaryRecord, first: Comparison | None) -> list[str]:
    """Where the runs part: tap, token and coordinate."""
    lines = [f"first difference: {summary.first_divergence}"] if summary.first_divergence else []
    if summary.first_divergence_tap:
        lines.append(f"recorded by tap {summary.first_divergence_tap}")
    diff = first.diff if isinstance(first, TensorComparison) and summary.first_divergence else None
    if diff is not None and diff.max_abs_diff != 0:
        token = f" ({diff.max_diff_token})" if diff.max_diff_token else ""
        lines.append(
            f"largest difference at {diff.max_diff_coord}{token}: {diff.baseline_at_max:.6g} against "
            f"{diff.target_at_max:.6g}"
        )
    return lines


def log_lines(log: LogRecord) -> list[str]:
    """One line per finding about a run."""
    return [f"{note.kind}: {note.message} ({note.category})" for note in (*log.errors, *log.infos)]


def summary_line(summary: SummaryRecord) -> str:
    """The counts, and where the runs part."""
    return (
        f"{summary.passed + summary.failed} compared: {summary.passed} passed, {summary.failed} failed; "
        f"{summary.skipped} skipped, {summary.errored} errored"
    )


def summary_lines(summary: SummaryRecord) -> list[str]:
    """What else a reader must know of a comparison: names that one side lacks, and rows that were left out."""
    lines = [
        f"only the {side} has: {', '.join(names[:MOST_NAMES])}"
        + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
        for side, names in (("baseline", summary.only_baseline), ("target", summary.only_target))
        if names
    ]
    lines.extend(f"{note.kind}: {note.message} ({note.category})" for note in (*summary.errors, *summary.infos))
    if summary.bits is not None:
        lines.append(summary.bits)
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def counted(count: int, noun: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

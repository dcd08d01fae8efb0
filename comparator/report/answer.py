"""The answer of a comparison in words, from the records that JSON lines carry: what the page, the Markdown summary and
the text for an issue say first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MOST_NAMES = 10
"""Names, or notes, of one kind that are listed."""
Outcome = Literal["agree", "differ", "nothing-compared", "incomplete"]
OUTCOMES: Mapping[Outcome, str] = {
    "agree": "The runs agree",
    "differ": "The runs do not agree",
    "nothing-compared": "Nothing was compared",
    "incomplete": "The report is incomplete: there is no verdict",
}


@dataclass
class RunRecords:
    """The records of a report that are about the comparison as a whole."""

    config: Mapping[str, Any] = field(default_factory=dict)
    ranks: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    input_ids: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: list[Mapping[str, Any]] = field(default_factory=list)
    diagnosis: Mapping[str, Any] | None = None
    accounts: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record; findings are let by."""
        match record["type"]:
            case "config":
                self.config = record["config"]
            case "rank_info":
                self.ranks[record["label"]] = record["rows"]
            case "input_ids":
                self.input_ids[record["label"]] = record["rows"]
            case "log":
                self.notes += [*record["errors"], *record["infos"]]
            case "diagnosis":
                self.diagnosis = record
            case "accounts":
                self.accounts = record["names"]
            case "summary":
                self.summary = record
                self.notes += [*record["errors"], *record["infos"]]

    def path(self, side: str) -> str:
        """Where a run lies."""
        return str(self.config.get(side) or self.config.get(f"{side}_path") or side)


@dataclass(frozen=True)
class Answer:
    """What a reader wants to know first."""

    outcome: Outcome
    headline: str
    words: str
    """One paragraph: where error was introduced and what it looks like."""
    place: str | None
    """The tensor where the runs part, and its step: ``attn_output layer_id=1 step=0``."""
    facts: tuple[tuple[str, str], ...]
    """Label and sentence."""
    compared: tuple[str, ...]
    """What was compared."""
    left_out: tuple[str, ...]
    """What was not, and why."""
    notes: tuple[Mapping[str, Any], ...]
    """What is wrong with runs or switches: kind, category, message."""


def answer(records: RunRecords, first: Mapping[str, Any] | None = None) -> Answer:
    """The answer; ``first`` is the finding where the runs part, as JSON."""
    summary = records.summary
    outcome = _outcome(summary)
    diagnosis = records.diagnosis or {}
    words = str(diagnosis.get("words") or _without_diagnosis(summary, first))
    return Answer(
        outcome,
        OUTCOMES[outcome],
        words,
        None if first is None else label_of(first, step=True),
        tuple(_facts(summary or {}, diagnosis, first)),
        tuple(_compared(summary, records.accounts)),
        tuple(_left_out(summary or {}, records.accounts)),
        tuple(records.notes),
    )


def label_of(finding: Mapping[str, Any], *, step: bool = False) -> str:
    """A finding for people: ``attn_output layer_id=3``, with its step when that is asked for."""
    at = (finding.get("location") or {}).get("step")
    tags = [f"{key}={value}" for key, value in (finding.get("tags") or {}).items()]
    return " ".join([str(finding["name"]), *tags, *([f"step={at}"] if step and at is not None else [])])


def _outcome(summary: Mapping[str, Any] | None) -> Outcome:
    if summary is None:
        return "incomplete"
    if not summary["passed"] and not summary["failed"]:
        return "nothing-compared"
    return "agree" if summary["exit_code"] == 0 else "differ"


def _without_diagnosis(summary: Mapping[str, Any] | None, first: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "The lines end before the summary. What was compared until then is below."
    if first is not None:
        return f"The first tensor that fails is {label_of(first, step=True)}."
    return str(summary.get("bits") or "").capitalize()


def _facts(
    summary: Mapping[str, Any], diagnosis: Mapping[str, Any], first: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    found = []
    place = diagnosis.get("place") or {}
    tap = place.get("tap") or summary.get("first_divergence_tap")
    if tap:
        found.append(("Recorded by", str(tap)))
    if first is not None:
        tokens = _tokens(first)
        if tokens:
            found.append(("Tokens", tokens))
        ranks = _ranks(first)
        if ranks:
            found.append(("Ranks", ranks))
    if summary.get("bits"):
        found.append(("Bits", str(summary["bits"])))
    also = [_place(one) for one in diagnosis.get("also") or ()]
    if also:
        found.append(("Error also comes in at", ", ".join(also)))
    found += [("Not decided", str(one)) for one in diagnosis.get("undecided") or ()]
    found += [("Note", str(one)) for one in diagnosis.get("notes") or ()]
    found += [("The runs also differ in", str(one)) for one in summary.get("beside_tensors") or ()]
    return found


def _place(place: Mapping[str, Any]) -> str:
    layer = "" if place.get("layer") is None else f" layer {place['layer']}"
    return f"{place['name']}{layer}"


def _tokens(finding: Mapping[str, Any]) -> str:
    diff = finding.get("diff") or {}
    said = []
    if finding.get("first_bad_token"):
        said.append(f"from {finding['first_bad_token']} on")
    if diff.get("max_diff_token"):
        said.append(f"the largest difference at {diff['max_diff_token']}")
    if diff.get("differing"):
        said.append(f"{diff['differing']} elements differ")
    return "; ".join(said)


def _ranks(finding: Mapping[str, Any]) -> str:
    disagreeing = [check for check in finding.get("replicated_checks") or () if not check["passed"]]
    said = [
        f"{check['side']}: replica {check['compared_index']} of group {check['group_index']} over {check['axis']} "
        "is not what the others hold"
        for check in disagreeing
    ]
    if not said:
        bundle = finding.get("raw_bundle_info") or {}
        for key, side in (("x", "baseline"), ("y", "target")):
            files = (bundle.get(key) or {}).get("files") or ()
            ranks = sorted({file["rank"] for file in files if file.get("rank") is not None})
            if ranks:
                said.append(f"{side} put together from rank {', '.join(map(str, ranks))}")
    return "; ".join(said)


def _compared(summary: Mapping[str, Any] | None, accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    if summary is None:
        return []
    lines = [
        f"{summary['passed'] + summary['failed']} tensors and values: {summary['passed']} passed, {summary['failed']} "
        f"failed; {summary['skipped']} skipped, {summary['errored']} could not be compared"
    ]
    for side in ("baseline", "target"):
        rows = [one[side] for one in accounts]
        if rows:
            compared, recorded = sum(one["compared"] for one in rows), sum(one["recorded"] for one in rows)
            lines.append(f"{side}: {compared} of {recorded} recorded rows")
    return lines


def _left_out(summary: Mapping[str, Any], accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for side in ("baseline", "target"):
        left: Counter[str] = Counter()
        for one in accounts:
            left.update(one[side]["left_out"])
        if left:
            lines.append(f"{side}: " + ", ".join(f"{count} {reason}" for reason, count in left.most_common()))
    for side in ("baseline", "target"):
        names = summary.get(f"only_{side}") or ()
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"only the {side} has: {', '.join(names[:MOST_NAMES])}{more}")
    return lines


def issue_text(said: Answer, records: RunRecords) -> str:
    """The diagnosis to paste into an issue, in a few lines of plain text (and Markdown): the verdict, where error
    comes in, what was compared and what not."""
    lines = [said.headline, "", said.words, ""]
    if said.place:
        lines.append(f"- First divergence: {said.place}")
    lines += [f"- {label}: {sentence}" for label, sentence in said.facts]
    lines += [f"- Compared: {line}" for line in said.compared]
    lines += [f"- Not compared: {line}" for line in said.left_out]
    lines += [f"- {note['kind']}: {note['message']} ({note['category']})" for note in said.notes[:20]]
    lines += [f"- Baseline: {records.path('baseline')}", f"- Target: {records.path('target')}"]
    return "\n".join(line for line in lines) + "\n"

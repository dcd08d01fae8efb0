"""The summary of a comparison in Markdown, for the summary page of a CI job or an issue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from comparator.measure.picture import Picture
from comparator.report.answer import Answer, RunRecords, answer, label_of
from comparator.report.runs import earlier_failure
from comparator.report.sources import Sources
from comparator.report.strips import TokenStrips
from comparator.report.tolerance import times_tolerance

MOST_ROWS = 20
"""Findings that did not pass that are listed."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|!~&@])")
SIGNS = {"agree": "✅", "differ": "❌", "nothing-compared": "⚠️", "incomplete": "⚠️"}


class Markdown:
    """Takes the records of a report, as JSON objects, and makes a page of Markdown of them."""

    def __init__(self) -> None:
        self._records = RunRecords()
        self._bad: list[Mapping[str, Any]] = []
        self._count = 0
        self._first: Mapping[str, Any] | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one record, in the order of the report."""
        if "category" not in record:
            self._records.add(record)
        elif record["category"] in ("failed", "errored"):
            self._count += 1
            if record["category"] == "failed":
                self._first = earlier_failure(self._first, record)
            if len(self._bad) < MOST_ROWS:
                self._bad.append(record)

    def draw(self, picture: Picture) -> None:
        """The summary has no pictures."""

    def explain(self, sources: Sources) -> None:
        """The summary has no sources."""

    def show_tokens(self, strips: TokenStrips) -> None:
        """The summary has no tokens."""

    def text(self, *, missing: Sequence[str] = ()) -> str:
        """The page."""
        said = answer(self._records, self._first)
        lines = [f"## {SIGNS[said.outcome]} {said.headline}", "", escaped(said.words), "", *self._facts(said)]
        if self._bad:
            lines += ["", "| Tensor | Verdict | × tolerance | Error |", "| --- | --- | ---: | --- |"]
            lines += [_row(finding) for finding in self._bad]
            if self._count > len(self._bad):
                lines += ["", f"… and {self._count - len(self._bad)} more that did not pass."]
        return "\n".join(lines) + "\n"

    def _facts(self, said: Answer) -> list[str]:
        facts = [("Baseline", self._records.path("baseline")), ("Target", self._records.path("target"))]
        if said.place:
            facts.append(("First divergence", said.place))
        facts += said.facts
        facts += [("Compared", line) for line in said.compared]
        facts += [("Not compared", line) for line in said.left_out]
        facts += [
            (note["kind"].capitalize(), f"{note['message']} ({note['category']})") for note in said.notes[:MOST_ROWS]
        ]
        return [f"- **{label}**: {escaped(sentence)}" for label, sentence in facts]


def _row(finding: Mapping[str, Any]) -> str:
    times = times_tolerance(finding)
    analysis = finding.get("analysis") or {}
    judged = str(analysis.get("judged", "")).replace("-", " ")
    origin = f"inherited from {analysis['source']}" if judged == "inherited from" else judged
    reason = origin or finding.get("exception_message") or ""
    cells = (label_of(finding, step=True), finding["category"], "" if times is None else f"{times:.3g}", reason)
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def escaped(text: object) -> str:
    """Text of a run as Markdown that shows it as it is: no markup, no links, no mentions, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))

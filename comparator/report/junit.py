"""Findings as JUnit XML, for the test view of a CI server: a suite for each layer, a case for each tensor and step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from comparator.measure.picture import Picture
from comparator.report.answer import RunRecords, answer, issue_text, label_of
from comparator.report.runs import earlier_failure
from comparator.report.sources import Sources
from comparator.report.strips import TokenStrips

MOST_CASES = 20_000
"""Cases of what passed that are written one by one; what did not pass always is."""
_COUNTED = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Junit:
    """Takes the records of a report, as JSON objects, and makes a JUnit file of them."""

    def __init__(self) -> None:
        self._records = RunRecords()
        self._suite = ElementTree.Element("testsuite", name="comparator")
        self._passed = 0
        self._first: Mapping[str, Any] | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one record, in the order of the report."""
        if "category" not in record:
            self._records.add(record)
            return
        category = record["category"]
        if category == "failed":
            self._first = earlier_failure(self._first, record)
        if category == "passed":
            self._passed += 1
            if self._passed > MOST_CASES:
                return
        case = ElementTree.SubElement(
            self._suite, "testcase", classname=_clean(record["name"]), name=_clean(label_of(record, step=True))
        )
        if category == "failed":
            ElementTree.SubElement(case, "failure", message=_clean(_why(record))).text = _clean(_details(record))
        elif category == "errored":
            message = _clean(record.get("exception_message") or record.get("reason") or "")
            ElementTree.SubElement(case, "error", message=message).text = _clean(record.get("hint") or "")
        elif category == "skipped":
            ElementTree.SubElement(case, "skipped", message=_clean(record.get("message") or record.get("reason") or ""))

    def draw(self, picture: Picture) -> None:
        """A JUnit file has no pictures."""

    def explain(self, sources: Sources) -> None:
        """A JUnit file has no sources."""

    def show_tokens(self, strips: TokenStrips) -> None:
        """A JUnit file has no tokens."""

    def text(self, *, missing: Sequence[str] = ()) -> str:
        """The file. A comparison that fails for a reason that is no tensor's has a failed case of its own."""
        said = answer(self._records, self._first)
        verdict = ElementTree.Element("testcase", classname="comparison", name="verdict")
        if said.outcome != "agree":
            ElementTree.SubElement(verdict, "failure", message=_clean(said.headline))
        self._suite.insert(0, verdict)
        ElementTree.SubElement(self._suite, "system-out").text = _clean(issue_text(said, self._records))
        for attribute, tag in (
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            self._suite.set(attribute, str(sum(1 for _ in self._suite.iter(tag))))
        if self._passed > MOST_CASES:
            left_out = f"{self._passed - MOST_CASES} tensors that passed are not listed"
            self._suite.append(ElementTree.Comment(left_out))
        ElementTree.indent(self._suite)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(self._suite, encoding="unicode") + "\n"


def _why(finding: Mapping[str, Any]) -> str:
    analysis, diff = finding.get("analysis") or {}, finding.get("diff") or {}
    errors = finding.get("errors") or ()
    if analysis.get("judged") == "inherited-from":
        return f"inherited from {analysis['source']}"
    if analysis.get("judged") == "introduced-here":
        return f"error is introduced here: {analysis['multiple']:.3g} times the floor"
    if errors:
        return str(errors[0]["message"])
    if diff.get("predicate"):
        return f"{diff['predicate']} does not hold: rel {diff['rel_diff']}, max_abs {diff['max_abs_diff']}"
    return "differs"


def _details(finding: Mapping[str, Any]) -> str:
    diff = finding.get("diff") or {}
    lines = [f"tap {finding['tap']}"] if finding.get("tap") else []
    if diff:
        lines.append(
            f"rel {diff['rel_diff']}, largest difference {diff['max_abs_diff']} at {diff['max_diff_coord']}: "
            f"{diff['baseline_at_max']} against {diff['target_at_max']}"
        )
    lines += [note["message"] for note in (*(finding.get("errors") or ()), *(finding.get("infos") or ()))]
    return "\n".join(lines)


def _clean(text: object) -> str:
    """Text without the characters that XML cannot hold."""
    return _NOT_IN_XML.sub("\ufffd", str(text))

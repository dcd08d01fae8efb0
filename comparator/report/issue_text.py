"""The diagnosis as text to paste into an issue."""

from __future__ import annotations

from comparator.report.answer import Answer, RunRecords


def issue_text(said: Answer, records: RunRecords) -> str:
    """A few lines of plain text (and Markdown): the verdict, where error comes in, what was compared and what not."""
    lines = [said.headline, "", said.words, ""]
    if said.place:
        lines.append(f"- First divergence: {said.place}")
    lines += [f"- {label}: {sentence}" for label, sentence in said.facts]
    lines += [f"- Compared: {line}" for line in said.compared]
    lines += [f"- Not compared: {line}" for line in said.left_out]
    lines += [f"- {note['kind']}: {note['message']} ({note['category']})" for note in said.notes[:20]]
    lines += [f"- Baseline: {records.path('baseline')}", f"- Target: {records.path('target')}"]
    return "\n".join(line for line in lines) + "\n"

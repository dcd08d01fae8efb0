"""The differences from SGLang's comparator that are intended; ``docs/coming-from-sglang.md`` gives the reasons."""

from __future__ import annotations

from collections.abc import Sequence

from tests.differential.peers import Disagreement, Outcome, category


def unintended(theirs: Outcome, ours: Outcome, found: Sequence[Disagreement]) -> list[Disagreement]:
    """The disagreements that no intended difference explains."""
    if not found or (len(found) == 1 and found[0].what == "findings"):
        return list(found)
    explained = {
        f"{one['name']} (step {one['location']['step']})"
        for one, other in zip(theirs.findings, ours.findings, strict=False)
        if explains(one, other) is not None
    }
    left = [one for one in found if one.name not in explained and one.what != "exit code"]
    if explained:
        return left
    return [*left, *(one for one in found if one.what == "exit code")]


def explains(theirs: dict[str, object], ours: dict[str, object]) -> str | None:
    """The intended difference that explains what the comparators say of one tensor; None when there is none."""
    message = str(ours.get("exception_message") or "")
    if ours["type"] == "comparison_skip" and ours["reason"] == "request_ids":
        return "request ids are not compared"
    if theirs["type"] == "comparison_skip" and ours["category"] == "errored" and (
        "without dims that say how they relate" in message or "do not tell them apart" in message
    ):  # fmt: skip
        return "several ranks without dims that relate them are an error"
    if category(theirs) == "errored" and "Expected exactly 1 non-empty dp_rank" in str(theirs["exception_message"]):
        return "several data-parallel ranks that hold rows are joined"
    return None

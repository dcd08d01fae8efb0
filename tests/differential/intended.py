"""The differences from SGLang's comparator that are intended; ``docs/coming-from-sglang.md`` gives the reasons."""

from __future__ import annotations

from collections.abc import Sequence

from tests.differential.peers import Disagreement, Outcome, category


def unintended(
    theirs: Outcome, ours: Outcome, found: Sequence[Disagreement], flags: Sequence[str]
) -> list[Disagreement]:
    """The disagreements that no intended difference explains."""
    smart = "smart" in flags
    if theirs.error is not None:
        # SGLang's smart aligner ends the whole comparison on passes that it cannot read.
        return [] if smart else list(found)
    if not found or (len(found) == 1 and found[0].what == "findings"):
        return list(found)
    explained = {
        f"{one['name']} (step {one['location']['step']})"
        for one, other in zip(theirs.findings, ours.findings, strict=False)
        if explains(one, other, flags) is not None
    }
    # Sequences are joined in the order of the baseline here, of the target there.
    found = [one for one in found if not (smart and one.what == "diff.max_diff_coord")]
    left = [one for one in found if one.name not in explained and one.what != "exit code"]
    return left if explained else [*left, *(one for one in found if one.what == "exit code")]


def explains(theirs: dict[str, object], ours: dict[str, object], flags: Sequence[str]) -> str | None:
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
    if ours.get("tokens") is not None and "smart" not in flags:
        return "rows of data-parallel attention are aligned by the recorded batches, dummy rows dropped"
    if category(theirs) == "passed" and "no token is on both sides" in message:
        return "two sides without a common token are no pass"
    return None

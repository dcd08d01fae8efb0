"""The differences from SGLang's comparator that are intended; ``docs/coming-from-sglang.md`` gives the reasons."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.version import Version

from tests.differential.peers import Disagreement, Outcome, category


def unintended(
    theirs: Outcome, ours: Outcome, found: Sequence[Disagreement], flags: Sequence[str], *, older: bool = False
) -> list[Disagreement]:
    """The disagreements that no intended difference explains; ``older`` for releases of SGLang before 0.5.14."""
    smart = "smart" in flags
    if theirs.error is not None:
        # SGLang's smart aligner ends the whole comparison on passes that it cannot read.
        return [] if smart else list(found)
    if not found or (len(found) == 1 and found[0].what == "findings"):
        return list(found)
    explained = {
        f"{one['name']} (step {one['location']['step']})"
        for one, other in zip(theirs.findings, ours.findings, strict=False)
        if explains(one, other, flags, older=older) is not None
    }
    # Sequences are joined in the order of the baseline here, of the target there.
    found = [one for one in found if not (smart and one.what == "diff.max_diff_coord")]
    left = [one for one in found if one.name not in explained and one.what != "exit code"]
    return left if explained else [*left, *(one for one in found if one.what == "exit code")]


def is_older(release: str) -> bool:
    """Whether the rules of a release of SGLang's comparator are those before 0.5.14."""
    return Version(release) < Version("0.5.14")


def knows(flags: Sequence[str], *, older: bool) -> bool:
    """Whether SGLang's comparator takes the flags: pairs of pattern and criterion came with 0.5.14."""
    if not older or "--diff-threshold" not in flags:
        return True
    after = flags[flags.index("--diff-threshold") + 1 :]
    return next((at for at, text in enumerate(after) if text.startswith("--")), len(after)) == 1


def explains(
    theirs: dict[str, object], ours: dict[str, object], flags: Sequence[str], *, older: bool = False
) -> str | None:
    """The intended difference that explains what the comparators say of one tensor; None when there is none."""
    message = str(ours.get("exception_message") or "")
    difference = ours.get("diff")
    reasons = {
        "request ids are not compared": ours["type"] == "comparison_skip" and ours["reason"] == "request_ids",
        "several data-parallel ranks that hold rows of known tokens are joined": (
            category(theirs) == "errored" and "Expected exactly 1 non-empty dp_rank" in str(theirs["exception_message"])
        ),
        "nothing is compared without the steps of which nothing tells how their ranks relate": (
            category(theirs) in ("passed", "failed") and "and nothing says how they relate" in message
        ),
        "rows of data-parallel attention are aligned by the recorded batches, dummy rows dropped": (
            ours.get("tokens") is not None and "smart" not in flags
        ),
        "two sides without a common token are no pass": (
            category(theirs) == "passed" and "no token is on both sides" in message
        ),
        "equal zeros are a failure there: 0/0": (
            older and isinstance(difference, dict) and difference["max_abs_diff"] == 0
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)

"""Switches that name records and name none: most likely a slip of the pen."""

from __future__ import annotations

from collections.abc import Iterable

from comparator.match.bundles import RunIndex
from comparator.options import Options
from comparator.patterns import fullmatch, search


def unused_patterns(indexes: Iterable[RunIndex], options: Options) -> list[str]:
    """Sentences on the patterns of ``options`` that match no name of either run."""
    names = {kind.name for index in indexes for kind in index.entries.kinds}
    found = [
        f"--override-dims {override.match!r} is found in no recorded name"
        for override in options.overrides
        if not any(search(override.match, name) for name in names)
    ]
    for flag, pattern in (
        *(("--diff-threshold", rule.pattern) for rule in options.diff_threshold[:-1]),
        ("--allow-failed-pattern", options.allow_failed_pattern),
        ("--allow-skipped-pattern", options.allow_skipped_pattern),
    ):
        if pattern is not None and not any(fullmatch(pattern, name) for name in names):
            found.append(f"{flag} {pattern!r} matches no recorded name as a whole")
    return found

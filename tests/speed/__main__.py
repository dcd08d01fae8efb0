"""Measure all cases anew: ``python -m tests.speed [PART OF A NAME]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.speed.cases import ALL, CASES, Case
from tests.speed.ratios import ratio


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for case in CASES:
        if wanted in case.name:
            with tempfile.TemporaryDirectory() as folder:
                print(f"{case.name:40}", *_measured(case, Path(folder)), flush=True)


def _measured(case: Case, folder: Path) -> list[str]:
    found = []
    ours, reference = case.make(folder), case.reference(folder)
    for level in sorted(case.measured, key=lambda level: level or 0):
        if level is not None and case.module._compiled.limit(level) != level:
            continue
        again = [ratio(ours, reference) for _ in range(3)]
        found.append(f"{level}: {min(again):.2f}..{max(again):.2f} (was {case.expected(level):.2f})")
    if case.has_levels:
        case.module._compiled.limit(ALL)
    if ours.end is not None:
        ours.end()
    return found


if __name__ == "__main__":
    main()

"""How large the page of a report is, and how soon it shows its map in a headless browser.

``python -m benchmarks.paging`` prints; ``--write`` puts the table into docs/benchmarks.md. Needs chromium.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import machine, table, write_section
from comparator.report.html.page import Page
from testbed.browser import Browser, browser, why_no_browser
from testbed.synthetic_reports import report

LAYERS, TAPS = 84, 6
STEPS = (20, 397)
"""10,080 and 200,088 tensors, half of them failed."""
ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paging", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args(argv)
    missing = why_no_browser()
    if missing is not None:
        print(missing)
        return 1
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as found:
        rows = [measure(steps, Path(folder) / f"{steps}.html", found) for steps in STEPS]
    text = (
        f"## The page\n\n`python -m benchmarks.paging --write`; {machine()}; Debian's Chromium without a window. Every "
        "number of a tensor is another one, half of the tensors failed. Seconds from the start of the navigation, the "
        f"best of {ROUNDS}, while other work took the processors; made in: processor time, lines included.\n\n"
        + table(("tensors", "size", "first paint", "map on screen", "made in"), rows)
    )
    print(text)
    if options.write:
        write_section("page", text)
    return 0


def measure(steps: int, path: Path, found: Browser) -> tuple[str, ...]:
    """One row of the table."""
    start = time.process_time()
    page = Page()
    for record in report(LAYERS, steps, fault=LAYERS // 2):
        page.add(record)
    path.write_text(page.text(), encoding="utf-8")
    made = time.process_time() - start
    paint, drawn = zip(*(first_picture(found, path) for _ in range(ROUNDS)), strict=True)
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    tensors = f"{LAYERS * TAPS * steps:,}"
    return tensors, size, f"{min(paint):.2f} s", f"{min(drawn):.2f} s", f"{made:.0f} s"


def first_picture(found: Browser, path: Path) -> tuple[float, float]:
    """Seconds until anything, and until the map is on screen."""
    found.open(path)
    paint = found.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return float(paint) / 1000, float(found.run("return performance.getEntriesByName('map')[0].startTime")) / 1000


if __name__ == "__main__":
    raise SystemExit(main())

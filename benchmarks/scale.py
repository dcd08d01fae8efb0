"""How long runs of many ranks and records take to open, list and plan, before anything of them is compared.

``python -m benchmarks.scale`` prints; ``--write`` puts the table into docs/scale.md. The runs are those of
``testbed.sparse_runs``: all frames but those of the records, which are holes. Each line is a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import machine, table, write_section
from testbed.paths import CHECKOUT
from testbed.sparse_runs import Sparse, write_sparse_run

PLANNED = Sparse(data=8, tensor=8, layers=61, steps=128)
"""5 million records."""
LISTED = Sparse(data=2, tensor=4, layers=61, steps=204)
"""1 million records."""
MARKED = CHECKOUT / "docs" / "scale.md"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/scale.md")
    parser.add_argument("--only", choices=sorted(_WORK), help=argparse.SUPPRESS)
    parser.add_argument("runs", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        return _measured(_WORK[options.only], options.runs)
    with tempfile.TemporaryDirectory() as folder:
        listed = [str(write_sparse_run(Path(folder, "listed"), LISTED))]
        planned = [str(write_sparse_run(Path(folder, name), PLANNED)) for name in ("baseline", "target")]
        million, two = f"{LISTED.records:,} records of {LISTED.ranks} ranks", f"two runs of {PLANNED.records:,} records"
        rows = [
            _row(f"`open_run`, {million}", "open", listed),
            _row(f"`dumper ls`, {million}", "list", listed),
            _row(f"`dumper ls --json`, {million}", "lines", listed),
            _row(f"open, match and group {two}, {PLANNED.ranks} ranks each", "plan", planned),
        ]
    busy = f"{os.getloadavg()[0]:.0f} processes shared the processors"
    text = (
        f"`python -m benchmarks.scale --write`; {machine()}; imports not counted; files in the cache of the "
        f"system, while {busy}.\n\n" + table(("what", "time", "of the processor", "peak memory"), rows)
    )
    if options.write:
        write_section("planning", text, MARKED)
    print(text)
    return 0


def _open(runs: Sequence[str]) -> Callable[[], object]:
    from dumper.reading.open import open_run

    return lambda: [len(open_run(run).records) for run in runs]


def _list(runs: Sequence[str]) -> Callable[[], object]:
    from dumper.cli import main as dumper

    importlib.import_module("dumper.reading.listing")
    return lambda: dumper(["ls", *runs])


def _lines(runs: Sequence[str]) -> Callable[[], object]:
    from dumper.cli import main as dumper

    return lambda: dumper(["ls", "--json", *runs])


def _plan(runs: Sequence[str]) -> Callable[[], object]:
    from comparator.options import Options
    from comparator.prepared import prepare
    from dumper.reading.open import open_run

    return lambda: prepare(*map(open_run, runs), Options()).units


_WORK = {"open": _open, "list": _list, "lines": _lines, "plan": _plan}


def _measured(work: Callable[[Sequence[str]], Callable[[], object]], runs: Sequence[str]) -> int:
    """Do it, and print seconds, seconds of the processor, and bytes of memory at most, as the last line."""
    function = work(runs)
    start, processor = time.perf_counter(), time.process_time()
    function()
    took = time.perf_counter() - start, time.process_time() - processor
    print("\n", *took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return 0


def _row(what: str, work: str, runs: Sequence[str]) -> tuple[str, ...]:
    command = [sys.executable, "-m", "benchmarks.scale", "--only", work, *runs]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    seconds, processor, memory = map(float, done.stdout.splitlines()[-1].split())
    return what, f"{seconds:.2f} s", f"{processor:.2f} s", f"{memory / (1 << 20):,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())

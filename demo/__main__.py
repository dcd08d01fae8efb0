"""Serves a small Qwen3-MoE with real SGLang servers under several parallel layouts and compares what they computed.

Each layout of ``testbed.scenario`` is recorded once, and some with a planted fault, which the comparison has to find.
Exit code 0 only when all of it came out as expected.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from testbed.comparison import Outcome, compare
from testbed.layouts import LAYOUTS, PROMPT, Layout, record
from testbed.models import tiny_model
from testbed.scenario import FAULTY_ROWS, LONG_PROMPT_ROWS, ROWS, Row
from testbed.servers import ServerError

WIDTH = 120
PAGE = "report.html"
SHOWN = FAULTY_ROWS[0]
"""The comparison whose report is written as a page too."""
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the recordings")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the servers as on Ctrl-C
    try:
        return run(options.out, (*ROWS, *LONG_PROMPT_ROWS, *FAULTY_ROWS))
    except KeyboardInterrupt:
        console.print("\n[bold]Stopped.[/bold] The servers are stopped too; what was recorded is in", str(options.out))
        return 130
    except ServerError as error:
        console.print("\n[bold red]A server failed:[/bold red]", end=" ")
        console.print(str(error), markup=False, soft_wrap=True)
        return 1


def run(out: Path, rows: tuple[Row, ...]) -> int:
    names = list(dict.fromkeys(name for row in rows for name in (row.baseline, row.target)))
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
    console.print(f"Serving a tiny Qwen3-MoE with SGLang {len(names)} times; every rank records to {out}/LAYOUT.")
    timed("write the model", lambda: tiny_model("qwen3_moe"))
    for name in names:
        timed(f"record {name:<10} {described(LAYOUTS[name])}", partial(record, LAYOUTS[name], out / name))

    page = out / PAGE
    outcomes = [
        (row, compare(out / row.baseline, out / row.target, row.flags, page if row == SHOWN else None)) for row in rows
    ]
    for _, outcome in outcomes:
        if outcome.messages:
            console.print(outcome.messages, style="yellow", markup=False)
    for row, outcome in outcomes:
        if row.fault is not None:
            show_fault(out, row, outcome)
    show_table([(row, outcome) for row, outcome in outcomes if row.fault is None])
    well = all(as_expected(row, outcome) for row, outcome in outcomes)
    console.print("[bold green]All as expected.[/bold green]" if well else "[bold red]Not as expected.[/bold red]")
    return 0 if well else 1


def described(layout: Layout) -> str:
    """How it is served, in a few words."""
    parts = [shlex.join(layout.flags)]
    if layout.prompt != PROMPT:
        parts.append(f"a prompt of {len(layout.prompt)} tokens")
    if layout.fault is not None:
        parts.append(f"with the fault {layout.fault}")
    return ", ".join(parts)


def timed(what: str, work: Callable[[], object]) -> None:
    console.print(f"  {what} …", end=" ", markup=False)
    start = time.monotonic()
    work()
    console.print(f"{time.monotonic() - start:.0f} s")


def as_expected(row: Row, outcome: Outcome) -> bool:
    """A fault is found where it was planted. Else exit code 0, and every tensor passed, unless the flags of the row let
    some fail."""
    if row.fault is not None:
        failed = outcome.named("failed")
        return outcome.exit_code == 1 and bool(failed) and failed[0].startswith(row.fault)
    return outcome.exit_code == 0 and (outcome.all_passed or "--allow-failed-pattern" in row.flags)


def show_fault(out: Path, row: Row, outcome: Outcome) -> None:
    console.print(f"\n[bold]A planted fault[/bold]: {LAYOUTS[row.target].fault}", highlight=False)
    console.print(f"  $ python -m comparator {out / row.baseline} {out / row.target}", markup=False)
    summary = outcome.summary
    console.print(f"  {summary['passed']} passed, {summary['failed']} failed, exit code {outcome.exit_code}")
    for name in outcome.named("failed")[:1]:
        console.print(f"  the failures start at: {name}", style="red", markup=False)
    if row == SHOWN:
        console.print(f"  the report as a page, for a browser: {out / PAGE}", markup=False)


def show_table(outcomes: list[tuple[Row, Outcome]]) -> None:
    table = Table(title="\nSGLang under different parallel layouts", title_justify="left")
    for column in ("baseline", "target", "comparator flags"):
        table.add_column(column, overflow="fold")
    for column in ("passed", "failed", "skipped", "errored", "exit"):
        table.add_column(column, justify="right")
    for row, outcome in outcomes:
        summary = outcome.summary
        style = "green" if as_expected(row, outcome) else "red"
        counts = [str(summary[key]) for key in ("passed", "failed", "skipped", "errored")]
        flags = [described(LAYOUTS[name]) for name in (row.baseline, row.target)]
        table.add_row(*flags, shlex.join(row.flags) or "none", *counts, str(outcome.exit_code), style=style)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

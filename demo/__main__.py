"""Serves a small Qwen3-MoE with real SGLang servers under several parallel layouts and compares what they computed.

Each layout is recorded once. Then the rows of ``testbed.scenario.ROWS`` are compared, and one layout is served again
with a planted fault, which the comparison has to find. Exit code 0 only when all of it came out as expected.
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
from testbed.layouts import LAYOUTS, record
from testbed.models import tiny_model
from testbed.scenario import ROWS, Row
from testbed.servers import ServerError

FAULTY = "tp2-scaled"
WIDTH = 120
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the recordings")
    out: Path = parser.parse_args().out
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the servers as on Ctrl-C
    try:
        return run(out)
    except KeyboardInterrupt:
        console.print("\n[bold]Stopped.[/bold] The servers are stopped too; what was recorded is in", str(out))
        return 130
    except ServerError as error:
        console.print("\n[bold red]A server failed:[/bold red]", end=" ")
        console.print(str(error), markup=False, soft_wrap=True)
        return 1


def run(out: Path) -> int:
    names = list(dict.fromkeys(name for row in ROWS for name in (row.baseline, row.target)))
    for name in (*names, FAULTY):
        shutil.rmtree(out / name, ignore_errors=True)
    console.print(f"Serving a tiny Qwen3-MoE with SGLang {len(names) + 1} times; every rank records to {out}/LAYOUT.")
    timed("write the model", lambda: tiny_model("qwen3_moe"))
    for name in names:
        layout = LAYOUTS[name]
        timed(f"record {name:<6} {shlex.join(layout.flags)}", partial(record, layout, out / layout.name))
    timed(
        "record tp2 again, with layer 1's attention output scaled by 1.5 on one rank",
        partial(record, LAYOUTS[FAULTY], out / FAULTY),
    )

    outcomes = [(row, compare(out / row.baseline, out / row.target, row.flags)) for row in ROWS]
    fault = compare(out / "tp2", out / FAULTY)
    for outcome in (*(outcome for _, outcome in outcomes), fault):
        if outcome.messages:
            console.print(outcome.messages, style="yellow", markup=False)
    show_fault(out / "tp2", out / FAULTY, fault)
    show_table(outcomes)
    well = all(as_expected(row, outcome) for row, outcome in outcomes) and found(fault)
    console.print("[bold green]All as expected.[/bold green]" if well else "[bold red]Not as expected.[/bold red]")
    return 0 if well else 1


def timed(what: str, work: Callable[[], object]) -> None:
    console.print(f"  {what} …", end=" ", markup=False)
    start = time.monotonic()
    work()
    console.print(f"{time.monotonic() - start:.0f} s")


def as_expected(row: Row, outcome: Outcome) -> bool:
    """Exit code 0; and every tensor passed, unless the flags of the row let some fail."""
    return outcome.exit_code == 0 and (outcome.all_passed or "--allow-failed-pattern" in row.flags)


def found(fault: Outcome) -> bool:
    return fault.exit_code == 1 and bool(fault.named("failed")) and fault.named("failed")[0].startswith("attn_output")


def show_fault(baseline: Path, target: Path, fault: Outcome) -> None:
    console.print("\n[bold]The planted fault[/bold]")
    console.print(f"  $ python -m comparator {baseline} {target}", markup=False)
    summary = fault.summary
    console.print(f"  {summary['passed']} passed, {summary['failed']} failed, exit code {fault.exit_code}")
    for name in fault.named("failed")[:1]:
        console.print(f"  the failures start at: {name}", style="red", markup=False)


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
        flags = [shlex.join(LAYOUTS[name].flags) for name in (row.baseline, row.target)]
        table.add_row(*flags, shlex.join(row.flags) or "none", *counts, str(outcome.exit_code), style=style)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

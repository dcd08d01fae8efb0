"""Convert runs to SGLang's ``.pt`` files and back, beside copying the same ``.pt`` files.

    python -m benchmarks.converting [--write] [--scratch DIR]

Each side is a process of its own, from start to exit; sides take turns and the best of three counts. What is read is in
the page cache, what is written goes there, into a folder that is new; between two sides all of it is put to the disk.
``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.comparing import Scenario, write_ours
from benchmarks.report import machine, table, write_section

ROUNDS = 3
GOAL = 2.0
"""Times as long as copying."""
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


SCENARIOS = (
    (Scenario("16,384 tensors of 8 × 1024 bf16", (8, 1024), 64, 256), True),
    (Scenario("48 of 4096 × 4096 bf16", (4096, 4096), 48, 1), False),
)
"""And whether what was written is kept until the end: ext4 takes long to make files soon after many were deleted."""


def seconds(program: list[str], source: Path, destination: Path, bytecode: Path) -> float:
    # As an installed package has it, and pip compiles: this checkout may be told to keep no bytecode.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    os.sync()
    start = time.perf_counter()
    command = [sys.executable, *program, str(source), str(destination)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(scenario: Scenario, folder: Path, *, keep: bool) -> tuple[float, float, float]:
    """The best times of copying ``.pt`` files, of making them from a run, and of making a run from them."""
    run, files = folder / "run", folder / "files"
    write_ours(run, scenario, 0.0)
    convert = ["-m", "dumper", "convert"]
    seconds(convert, run, files, folder / "bytecode")
    sides = ((["-c", COPY], files), (convert, run), (convert, files))
    found: list[list[float]] = [[], [], []]
    for number, (times, (program, source)) in itertools.product(range(ROUNDS), zip(found, sides, strict=True)):
        made = folder / f"made-{number}-{sides.index((program, source))}"
        times.append(seconds(program, source, made, folder / "bytecode"))
        if not keep:
            shutil.rmtree(made)
    copying, to_files, to_run = map(min, found)
    return copying, to_files, to_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    rows = []
    for scenario, keep in SCENARIOS:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            copying, to_files, to_run = measure(scenario, Path(folder), keep=keep)
        ratios = f"{to_files / copying:.1f} × / {to_run / copying:.1f} ×"
        rows.append(
            (scenario.title, f"{copying:.2f} s", f"{to_files:.2f} s", f"{to_run:.2f} s", ratios, f"{GOAL:.0f} ×")
        )
        print(rows[-1], flush=True)
    header = ("", "copying the `.pt` files", "a run to `.pt` files", "`.pt` files to a run", "times as long", "goal")
    text = f"""## Converting

`python -m benchmarks.converting --write`; {machine()}. `python -m dumper convert` beside `shutil.copytree` of the same
`.pt` files: from start to exit of the process, the best of {ROUNDS}, taken in turns; from the page cache into it.

{table(header, rows)}
"""
    print(text)
    if arguments.write:
        write_section("converting", text)


if __name__ == "__main__":
    main()

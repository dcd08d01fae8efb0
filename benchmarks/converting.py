"""Convert runs to SGLang's ``.pt`` files and back, beside copying the same ``.pt`` files.

    python -m benchmarks.converting [--write] [--scratch DIR]

Each side is a process of its own, from start to exit; sides take turns and the best of three counts. ``--write`` puts
the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.comparing import SCENARIOS, Scenario, write_ours
from benchmarks.report import machine, table, write_section

ROUNDS = 3
GOAL = 2.0
"""Times as long as copying."""
COPY = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"


def seconds(program: list[str], source: Path, destination: Path, bytecode: Path) -> float:
    # As an installed package has it, and pip compiles: this checkout may be told to keep no bytecode.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    shutil.rmtree(destination, ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, *program, str(source), str(destination)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(scenario: Scenario, folder: Path) -> tuple[float, float, float]:
    """The best times of copying ``.pt`` files, of making them from a run, and of making a run from them."""
    run, files, made = folder / "run", folder / "files", folder / "made"
    write_ours(run, scenario, 0.0)
    convert = ["-m", "dumper", "convert"]
    seconds(convert, run, files, folder / "bytecode")
    sides = ((["-c", COPY], files), (convert, run), (convert, files))
    found = [[seconds(program, source, made, folder / "bytecode") for program, source in sides] for _ in range(ROUNDS)]
    copying, to_files, to_run = (min(times) for times in zip(*found, strict=True))
    return copying, to_files, to_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the files (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    rows = []
    for scenario, title in ((SCENARIOS[1], "4,096 tensors of 8 × 1024 bf16"), (SCENARIOS[2], "16 of 4096 × 4096 bf16")):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            copying, to_files, to_run = measure(scenario, Path(folder))
        ratios = f"{to_files / copying:.1f} × / {to_run / copying:.1f} ×"
        rows.append((title, f"{copying:.2f} s", f"{to_files:.2f} s", f"{to_run:.2f} s", ratios, f"{GOAL:.0f} ×"))
        print(rows[-1], flush=True)
    header = ("", "copying the `.pt` files", "a run to `.pt` files", "`.pt` files to a run", "times as long", "goal")
    text = f"""## Converting

`python -m benchmarks.converting --write`; {machine()}. `python -m dumper convert` beside `shutil.copytree` of the same
`.pt` files: from start to exit of the process, the best of {ROUNDS}, taken in turns.

{table(header, rows)}
"""
    print(text)
    if arguments.write:
        write_section("converting", text)


if __name__ == "__main__":
    main()

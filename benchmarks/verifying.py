"""``dumper verify`` beside ``cat`` of the same files, which is what reading them takes.

    python -m benchmarks.verifying [--write] [--scratch DIR]

Of a run of large values and of one of a million small records, from the page cache and after they were dropped from it:
``cat FILES > /dev/null``, all checksums of the files within a process that has begun, and ``python -m dumper verify``
from start to exit, on all cores and on one. They take turns; the least of several rounds. ``--write`` puts the table
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.report import machine, table, write_section
from dumper.format import checking
from dumper.format.regular_files import mapped
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder
from testbed.paths import CHECKOUT

LARGE = (5, 10, (1024, 4096))
SMALL = (1000, 1000, (64,))
"""Steps, values in each, and the shape of these, of float32."""
ROUNDS, DROPPED = 9, 3


def record(path: Path, steps: int, values: int, shape: tuple[int, ...]) -> None:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for step in range(steps):
        recorder.step(layout=TokenLayout("decode", (SequenceSpan("request", step, 1),), 1))
        for number in range(values):
            recorder.dump("hidden", value, layer_id=number)
    recorder.close()


class Sides:
    """What takes turns, on the files of a run."""

    def __init__(self, run: Path, compiled: Path) -> None:
        """``compiled``: a folder for the bytecode that an installed package has already."""
        self.files = sorted(run.glob("*.msgpack"))
        self._verify = [sys.executable, "-m", "dumper", "verify", str(run)]
        self._environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def cat(self) -> None:
        with Path(os.devnull).open("wb") as nowhere:
            subprocess.run(["cat", *self.files], stdout=nowhere, check=True)

    def checksums(self) -> None:
        walk = checking.Checking([mapped(file) for file in self.files])
        walk.finish(lambda done: None)
        assert not any(walk.outcome(number).damaged for number in range(len(self.files)))

    def command(self) -> None:
        done = subprocess.run(
            self._verify, cwd=CHECKOUT, env=self._environment, stdout=subprocess.PIPE, text=True, check=True
        )
        assert "every checksum is right" in done.stdout

    def drop(self) -> None:
        """Have the system forget what the files hold."""
        for file in self.files:
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def on_one_core(function: Callable[[], None]) -> Callable[[], None]:
    def alone() -> None:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            function()
        finally:
            os.sched_setaffinity(0, cores)

    return alone


def least(functions: Sequence[Callable[[], None]], rounds: int, before: Callable[[], None]) -> list[float]:
    """Seconds that each takes, in turns."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(found, functions, strict=True):
            before()
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [min(times) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the runs (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        record(folder / "one", 1, 1, (1,))
        one = Sides(folder / "one", folder / "bytecode")
        one.command()  # has bytecode made
        (start,) = least([one.command], ROUNDS, lambda: None)
        for name, (steps, values, shape) in {"large": LARGE, "small": SMALL}.items():
            record(folder / name, steps, values, shape)
            sides = Sides(folder / name, folder / "bytecode")
            size = sum(file.stat().st_size for file in sides.files)
            title = f"{steps * values:,} records, {size / 1e6:,.0f} MB"
            for dropped in (False, True):
                functions = [sides.cat, sides.checksums, sides.command]
                if not dropped:
                    functions += [on_one_core(sides.checksums), on_one_core(sides.command)]
                cat, *took = least(functions, DROPPED if dropped else ROUNDS, sides.drop if dropped else lambda: None)
                cells = [f"{seconds:.2f} s ({seconds / cat:.1f} ×)" for seconds in took]
                where = "from the disk" if dropped else "from the page cache"
                rows.append((f"{title}, {where}", f"{cat:.2f} s", *cells, *([""] * (4 - len(cells)))))
                print(rows[-1], flush=True)
    columns = ("", "`cat`", "all checksums", "`dumper verify`", "all checksums, one core", "`dumper verify`, one core")
    busy = f"{os.getloadavg()[0]:.0f} processes shared the processors"
    text = f"""## Verifying

`python -m benchmarks.verifying --write`; {machine()}, while {busy}.
A run of float32 values of 1024 × 4096, and one of 64 each, of one file: `cat FILES > /dev/null`, all checksums in a
process that has begun, and `python -m dumper verify` from start to exit; beside each how many times as long as `cat` it
takes. The least of {ROUNDS} rounds in turns, {DROPPED} from the disk. Of a run of one value the command takes
{start:.2f} s.

{table(columns, rows)}

Where there is little to check nearly all is the start: of Python, of numpy, whose import takes as long as all of ours,
and of what reads a run. The files are read meanwhile, where there is another core. Of small records each is walked to,
its metadata and its payload are hashed, and it is held against its row in the index; to open the run that index is
copied and hashed once more. Payloads are hashed where they are mapped, by as many threads as there are cores, four
megabytes at a time, and their pages are given back. Tried on the large run in the page cache, alone and on two cores:
`pread` into a buffer that stays in the cache takes 1.2 to 1.5 times as long, and `MADV_POPULATE_READ` before each piece
1.3 to 1.4 times; from the disk all three take what the disk does.
"""
    print(text)
    if arguments.write:
        write_section("verifying", text)


if __name__ == "__main__":
    main()

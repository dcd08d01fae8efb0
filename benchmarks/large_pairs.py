"""Measure large pairs beside ``numpy.array_equal`` of the same mapped files, which is near what reading them takes.

    python -m benchmarks.large_pairs [--write] [--scratch DIR]

In one process, in turns: the pass that gives the sums of a pair and of each of its rows; all that ``comparator
compare`` does with one pair between the opened runs and the numbers that verdicts are made from (checksums, alignment,
differences, the profile of its tap), on one thread and on as many as there are cores; and ``array_equal`` of the bits,
which has one thread. Each side maps the pages of the files anew. Of one thread the processor time, of several the time
that passes; the least of many rounds. ``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.report import machine, table, write_section
from comparator.measure.difference import compare_arrays
from comparator.options import Options
from comparator.prepared import prepare
from dumper.layout import SequenceSpan, TokenLayout
from dumper.reading.open import open_run
from dumper.recording.recorder import Recorder
from tensortap.cores import available_cores

SHAPE = (4096, 4096)
ROUNDS = 150
GOAL = 1.5
"""Times as long as ``array_equal``."""
KINDS = (
    ("the same bytes", lambda value, noise: value),
    ("noise of rounding", lambda value, noise: value + 1e-3 * noise),
    ("a factor of 1.02, and noise", lambda value, noise: 1.02 * (value + 1e-3 * noise)),
)


def write(path: Path, value: torch.Tensor) -> None:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    recorder.configure(parallel={"tp": (0, 1)})
    recorder.step(layout=TokenLayout("extend", (SequenceSpan("request", 0, len(value)),), len(value)))
    recorder.dump("hidden", value.to(torch.bfloat16), dims="t h", layer_id=0)
    recorder.close()


class Least(NamedTuple):
    """The least of many rounds, in milliseconds."""

    processor: float
    """Of all threads."""
    passed: float


def least(functions: Sequence[Callable[[], None]], before: Callable[[], None]) -> Iterator[Least]:
    """What each takes, in turns."""
    found: list[list[tuple[float, float]]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for times, function in zip(found, functions, strict=True):
            before()
            start, processor = time.perf_counter(), time.process_time()
            function()
            times.append((1000 * (time.process_time() - processor), 1000 * (time.perf_counter() - start)))
    return (Least(*map(min, zip(*times, strict=True))) for times in found)


def measure(baseline: Path, target: Path) -> tuple[Least, Least, Least, Least]:
    """Of ``array_equal``, of the sums of the pair and its rows, and of measuring it on one thread and on all cores."""
    runs = open_run(baseline), open_run(target)
    prepared = prepare(*runs, Options())
    (unit,) = prepared.units
    alone, together = prepared.profiling(), prepared.profiling(available_cores())
    records = [run.records[0] for run in runs]
    pair = [record.array() for record in records]
    left, right = (one.view(np.uint16) for one in pair)

    def let_go() -> None:
        for record in records:
            record.let_go()

    equal, sums, one, several = least(
        (
            lambda: _used(np.array_equal(left, right)),
            lambda: _used(compare_arrays(*pair, by_row=True)),
            lambda: _used(alone(unit)),
            lambda: _used(together(unit)),
        ),
        let_go,
    )
    return equal, sums, one, several


def _used(value: object) -> None:
    del value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the runs (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"TORCHELASTIC_RUN_ID": "benchmark", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    generator = torch.Generator().manual_seed(0)
    value, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        write(folder / "baseline", value)
        for number, (title, change) in enumerate(KINDS):
            write(folder / str(number), change(value, noise))
            equal, sums, one, several = measure(folder / "baseline", folder / str(number))
            rows.append(
                (
                    title,
                    f"{equal.processor:.1f} ms",
                    f"{sums.processor:.1f} ms",
                    f"{sums.processor / equal.processor:.1f} ×",
                    f"{one.processor:.1f} ms",
                    f"{one.processor / equal.processor:.1f} ×",
                    f"{several.passed:.1f} ms",
                    f"{several.passed / equal.passed:.1f} ×",
                    f"{GOAL} ×",
                )
            )
            print(rows[-1], flush=True)
    cores = available_cores()
    columns = (
        "target against baseline",
        "`array_equal`",
        "sums of both and of each row",
        "times as long",
        "all that is measured",
        "times as long",
        f"on {cores} thread{'s' * (cores > 1)}",
        "times as long",
        "goal",
    )
    text = f"""## Large pairs

`python -m benchmarks.large_pairs --write`; {machine()}. One pair of {SHAPE[0]} × {SHAPE[1]} bf16 in mapped files, all
that is measured of it, beside `numpy.array_equal` of the same bits on one thread, in one process: the least of {ROUNDS}
rounds, taken in turns; processor time of one thread, and the time that passes with several.

{table(columns, rows)}

The goal is reached by the pass that gives what differences and statistics are made from, of the pair and of each row.
All that is measured has checksums, the sums of each channel and the profile of the tap beside it, and takes longer
where the sides differ. Threads share the parts of a pair, of four megabytes each, where a process has cores to itself:
of a single large pair, or where fewer processes than cores have something to compare. What is the same byte for byte
takes one pass with the sums of one side, and one checksum. Else a third of what one thread does is one pass over both
sides: checksums, sums and extremes of each row. A fourth is the sums of channels, of 32 rows each time, which are in
the cache then; an eighth is to map the pages and to wait for them, and a twentieth to give back the mapped memory part
by part, which is not counted of `array_equal`. All that is shared by threads, checksums too: what a block of one adds
to it is found with the sums, by whoever looks at its part, and joined in order. A seventh is not: planning, and what is
made of all rows and channels. What is shared takes 1.2 times what `array_equal` takes on two threads, and the rest
another 0.4 times. That waits for the memory; this is arithmetic: of 32 elements on both sides 33 instructions in
vectors of 64 bytes for the rows, 24 for the channels, 10 for the checksums. Where a processor starts two of them in a
cycle, at 3.7 GHz, that is 4.7 ms of one thread, and they take 5.8 ms. It takes instructions for bfloat16
(AVX512-BF16); with AVX2 alone it takes 1.5 times as long. A factor that all rows have is tested on 768 rows; that its
significance is beyond doubt is seen on 32 of them, which takes 1 ms.
"""
    print(text)
    if arguments.write:
        write_section("large-pairs", text)


if __name__ == "__main__":
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        # As in ``python -m comparator``; BLAS reads it when it is loaded.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.large_pairs", *sys.argv[1:]])
    main()

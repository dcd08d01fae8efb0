"""Measure large pairs beside ``numpy.array_equal`` of the same mapped files, which is near what reading them takes.

    python -m benchmarks.large_pairs [--write] [--scratch DIR]

In one process and on one thread, in turns: all that ``comparator compare`` does with one pair between the opened runs
and the numbers that verdicts are made from (checksums, alignment, differences, the profile of its tap), and
``array_equal`` of the bits. Each side maps the pages of the files anew. Processor time, the least of many rounds.
``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import machine, table, write_section
from comparator.options import Options
from comparator.prepared import prepare
from dumper.layout import SequenceSpan, TokenLayout
from dumper.reading.open import open_run
from dumper.recording.recorder import Recorder

SHAPE = (4096, 4096)
ROUNDS = 60
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


def least(functions: tuple[Callable[[], None], ...], before: Callable[[], None]) -> Iterator[float]:
    """The least processor time of each in milliseconds, taken in turns."""
    found = [[] for _ in functions]  # type: list[list[float]]
    for _ in range(ROUNDS):
        for times, function in zip(found, functions, strict=True):
            before()
            start = time.thread_time()
            function()
            times.append(1000 * (time.thread_time() - start))
    return map(min, found)


def measure(baseline: Path, target: Path) -> tuple[float, float]:
    """Of ``array_equal`` and of measuring the pair."""
    runs = open_run(baseline), open_run(target)
    prepared = prepare(*runs, Options())
    (unit,) = prepared.units
    profiling = prepared.profiling()
    records = [run.records[0] for run in runs]
    left, right = (record.array().view(np.uint16) for record in records)

    def let_go() -> None:
        for record in records:
            record.let_go()

    equal, ours = least((lambda: _used(np.array_equal(left, right)), lambda: _used(profiling(unit))), let_go)
    return equal, ours


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
            equal, ours = measure(folder / "baseline", folder / str(number))
            rows.append((title, f"{equal:.1f} ms", f"{ours:.1f} ms", f"{ours / equal:.1f} ×", f"{GOAL} ×"))
            print(rows[-1], flush=True)
    text = f"""## Large pairs

`python -m benchmarks.large_pairs --write`; {machine()}. One pair of {SHAPE[0]} × {SHAPE[1]} bf16 in mapped files, all
that is measured of it, beside `numpy.array_equal` of the same bits: processor time of one thread in one process, the
least of {ROUNDS} rounds, taken in turns.

{table(("target against baseline", "`array_equal`", "tensortap", "times as long", "goal"), rows)}

What is the same byte for byte takes one pass with the sums of one side, and one checksum, which is taken of two
megabytes at a time before they are summed; a seventh is the mapped memory that is given back, which is not counted of
`array_equal`. Else a third is the pass over both sides (sums and extremes of each row), a third the sums of channels,
which need the sizes of all rows, a fifth the checksums. `array_equal` waits for the memory; this is arithmetic: of 8
elements on both sides 29 instructions in vectors of 8 for the sums of the report and of rows, 14 for those of
channels, 7 for the checksums. Where a processor starts four of them in a cycle, at 3 GHz, that is 9 ms: the goal is
out of reach with vectors of this length unless something is left out. A factor that all rows have is tested on 768
rows: where its significance is beyond doubt it is estimated by random vectors, in a tenth of the time of the rows'
Gram matrix.
"""
    print(text)
    if arguments.write:
        write_section("large-pairs", text)


if __name__ == "__main__":
    main()

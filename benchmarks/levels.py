"""What a tap on the host costs its caller at each level, beside a copy of the tensor.

    python -m benchmarks.levels [--write] [--rounds N] [--folder DIR]

In one process, in turns: calls of ``dump`` back to back while the writer works, of a small tensor, of a slice of the
columns of a wider one, and of a large tensor; and ``torch.clone`` of the same. Each figure is the best of the rounds.
``--write`` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.report import machine, table, write_section
from dumper.recording.recorder import Recorder
from dumper.settings import Settings

LEVELS = ("full", "hash", "stats", "sample(stride=4)")
SMALL_CALLS = 2_000
LARGE_CALLS = 8


def values() -> dict[str, tuple[torch.Tensor, int]]:
    """The tensors, and how often each is recorded in a round."""
    wide = torch.randn(8, 3 * 1024).to(torch.bfloat16)
    return {
        "8×1024 bf16": (wide[:, :1024].contiguous(), SMALL_CALLS),
        "8×1024 bf16, of rows of 3072": (wide[:, 1024:2048], SMALL_CALLS),
        "4096×4096 bf16": (torch.randn(4096, 4096).to(torch.bfloat16), LARGE_CALLS),
    }


def seconds_a_call(call: Callable[[int], object], calls: int) -> float:
    start = time.perf_counter()
    for number in range(calls):
        call(number)
    return (time.perf_counter() - start) / calls


def measure(rounds: int, folder: Path) -> dict[tuple[str, str], float]:
    """The least seconds a call of each tensor and level, ``clone`` among them."""
    best: dict[tuple[str, str], float] = {}
    recorder = Recorder(Settings(enable=True, control=False))
    for number in range(rounds + 1):  # the first warms up
        for title, (value, calls) in values().items():
            found = {"clone": seconds_a_call(lambda _, value=value: value.clone(), calls)}  # type: ignore[misc]
            for level in LEVELS:
                recorder.configure(dir=str(folder), run=f"run-{number}", level=level)
                recorder.step()
                for _ in range(3):
                    recorder.dump("x", value, dims="t h", layer_id=0)
                recorder.flush()
                found[level] = seconds_a_call(
                    lambda at, value=value: recorder.dump("x", value, dims="t h", layer_id=at % 48),  # type: ignore[misc]
                    calls,
                )
                recorder.close()
                shutil.rmtree(folder / f"run-{number}", ignore_errors=True)
            for what, seconds in found.items() if number else ():
                best[title, what] = min(seconds, best.get((title, what), seconds))
    return best


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to record (default: a temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="tensortap-benchmark-", dir=arguments.folder))
    try:
        best = measure(arguments.rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for title in values():
        clone = best[title, "clone"]
        times = (f"{shown(best[title, level])} ({best[title, level] / clone:.2g} ×)" for level in LEVELS)
        rows.append((title, shown(clone), *times))
    text = f"""## Levels on the host

`python -m benchmarks.levels --write`; {machine()}, torch {torch.__version__} on one thread.
What one call of `dump` takes in the calling thread, and how that relates to `torch.clone` of the same tensor: the best
of {arguments.rounds} rounds of {SMALL_CALLS:,} calls of small tensors, of {LARGE_CALLS} of large ones, in turns.

{table(("tensor", "`clone`", *(f"`{level}`" for level in LEVELS)), rows)}

Statistics are computed in one pass over the memory where the tensor is. Fingerprints are computed by the writer, of a
copy."""
    print(text)
    if arguments.write:
        write_section("levels", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compare with SGLang's comparator: time from start to exit, on the same values.

    python -m benchmarks.comparing [--write] [--scratch DIR]

needs the development environment (SGLang is installed there as the peer). Each side writes what its own dumper
would write; both comparators run as processes of their own, in turns, and the best of two runs counts. ``--write`` puts
the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import machine, table, write_section
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder
from testbed.large_runs import write_large_run

REPEATS = 2
BYTECODE = tempfile.TemporaryDirectory(prefix="bytecode-")
"""Of all sides, filled by their first runs."""


@dataclass(frozen=True)
class Scenario:
    """``layers`` tensors of one shape in each of ``steps`` steps, on each of ``ranks`` ranks a summand of it."""

    title: str
    shape: tuple[int, int]
    layers: int
    steps: int
    ranks: int = 1
    goal: str = ""
    """How many times as fast as the peer it should be: on its files, and on our runs."""

    @property
    def dims(self) -> str:
        return "t h" if self.ranks == 1 else "t h[tp:partial]"


SCENARIOS = [
    Scenario("one pair of 8 × 1024 bf16: start-up", (8, 1024), 1, 1, goal="10 × / 20 ×"),
    Scenario("4,096 pairs of 8 × 1024 bf16", (8, 1024), 64, 64, goal="25 × / 40 ×"),
    Scenario("16 pairs of 4096 × 4096 bf16", (4096, 4096), 16, 1, goal="15 × / 25 ×"),
    Scenario("400 pairs of 8 × 1024 bf16, sums of 8 ranks", (8, 1024), 20, 20, ranks=8, goal="25 ×"),
]
LARGE, MEMORY = (1 << 20, 4096), "1G"
"""Shape of a pair of 8 GiB each in bfloat16, and the memory that comparing it may take."""
GROWTH = (10_000, 100_000)
"""Pairs of 1 × 64 of our own runs."""


def tensors(scenario: Scenario, noise: float, rank: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    for step in range(scenario.steps):
        for layer in range(scenario.layers):
            generator = torch.Generator().manual_seed(step * 1000 + layer + 1_000_000 * rank)
            value = torch.randn(scenario.shape, generator=generator)
            yield step, layer, (value + noise * torch.randn(scenario.shape, generator=generator)).to(torch.bfloat16)


def write_ours(path: Path, scenario: Scenario, noise: float) -> None:
    """Each rank is a process of its own, as it is where a model runs."""
    for rank in range(scenario.ranks):
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                raise SystemExit("a rank could not be written")
            continue
        try:
            _write_rank(path, scenario, noise, rank)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)


def _write_rank(path: Path, scenario: Scenario, noise: float, rank: int) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "benchmark",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(scenario.ranks),
    }
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    recorder.configure(parallel={"tp": (rank, scenario.ranks)})
    rows = scenario.shape[0]
    current = -1
    for step, layer, value in tensors(scenario, noise, rank):
        if step != current:
            span = SequenceSpan("request", step * rows, rows)
            recorder.step(layout=TokenLayout("extend", (span,), rows))
            current = step
        recorder.dump("hidden", value, dims=scenario.dims, layer_id=layer)
    recorder.close()


def write_theirs(path: Path, scenario: Scenario, noise: float) -> None:
    path.mkdir(parents=True)
    for rank in range(scenario.ranks):
        for index, (step, layer, value) in enumerate(tensors(scenario, noise, rank)):
            keys = (
                f"step={step}___rank={rank}___dump_index={index}___name=hidden___recompute_status=disabled"
                f"___layer_id={layer}"
            )
            parallel = {"tp_rank": rank, "tp_size": scenario.ranks}
            meta = {"dims": scenario.dims, "rank": rank, "world_size": scenario.ranks, "sglang_parallel_info": parallel}
            torch.save({"value": value, "meta": meta}, path / f"{keys}.pt")


PEER = """
import importlib.util, sys, types
home = importlib.util.find_spec("sglang").submodule_search_locations[0]
for name in ("sglang", "sglang.srt"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [home + name[6:].replace(".", "/")]
for name in ("sglang.srt.managers", "sglang.srt.managers.io_struct"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].sock_recv = sys.modules[name].sock_send = sys.modules[name].wrap_as_pickle = None
from sglang.srt.debug_utils.comparator.entrypoint import main
main()
"""
"""SGLang's comparator without importing the rest of SGLang, which it does not need."""


@dataclass(frozen=True)
class Cost:
    """Of one process, from start to exit."""

    seconds: float
    peak: int
    """Bytes of memory."""
    processor: float
    """Seconds, of its own processes as well."""


PROBE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(used.ru_maxrss, used.ru_utime + used.ru_stime, file=file)
sys.exit(code)
"""
"""Starts a program and writes its peak memory and its processor time. It is small itself: a process counts what it had
before it became another program."""


def run(program: list[str], folder: Path, exit_code: int = 0) -> Cost:
    """Compare ``a`` with ``b`` of the folder; it has to end with that code."""
    probed = folder / "probed"
    command = [sys.executable, *program, "--baseline-path", str(folder / "a"), "--target-path", str(folder / "b")]
    probe = [sys.executable, "-S", "-c", PROBE, str(probed)]
    # As an installed package has it, and pip compiles: this checkout may be told to keep no bytecode.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(BYTECODE.name), "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    done = subprocess.run(
        [*probe, *command, "--report-path", ""], capture_output=True, text=True, check=False, env=environment
    )
    seconds = time.perf_counter() - start
    if done.returncode != exit_code:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    memory, processor = probed.read_text().split()
    return Cost(seconds, int(memory) * 1024, float(processor))


def measure(scenario: Scenario, folder: Path) -> list[Cost]:
    """The best of SGLang's comparator, of ours on SGLang's files, and of ours on our runs."""
    write: dict[str, Callable[[Path, Scenario, float], None]] = {"ours": write_ours, "theirs": write_theirs}
    for kind, writer in write.items():
        for name, noise in (("a", 0.0), ("b", 1e-3)):
            (folder / kind).mkdir(exist_ok=True, parents=True)
            writer(folder / kind / name, scenario, noise)
    sides = ((["-c", PEER], "theirs"), (["-m", "comparator"], "theirs"), (["-m", "comparator"], "ours"))
    found = [[run(program, folder / kind) for program, kind in sides] for _ in range(REPEATS)]
    return [min(costs, key=lambda cost: cost.seconds) for costs in zip(*found, strict=True)]


def measure_growth(folder: Path) -> list[Cost]:
    """Ours, on runs of so many pairs."""
    found = []
    for pairs in GROWTH:
        scenario = Scenario("", (1, 64), 100, pairs // 100)
        for name, noise in (("a", 0.0), ("b", 1e-3)):
            write_ours(folder / str(pairs) / name, scenario, noise)
        found.append(run(["-m", "comparator"], folder / str(pairs)))
    return found


def measure_large(folder: Path) -> Cost:
    """Ours, of a pair that is eight times as large as the memory that it may take."""
    for name, noise in (("a", 0.0), ("b", 1e-3)):
        write_large_run(folder / name, *LARGE, noise=noise)
    return run(["-m", "comparator", "--memory", MEMORY], folder)


def in_words(cost: Cost) -> str:
    return f"{cost.seconds:.2f} s, {cost.peak / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the runs (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            theirs, on_theirs, ours = measure(scenario, Path(folder))
        factors = f"{theirs.seconds / on_theirs.seconds:.1f} × / {theirs.seconds / ours.seconds:.1f} ×"
        rows.append((scenario.title, *map(in_words, (theirs, on_theirs, ours)), factors, scenario.goal))
        print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        few, many = measure_growth(Path(folder))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        large = measure_large(Path(folder))
    peer = f"SGLang {importlib.metadata.version('sglang')}"
    header = ("", f"{peer}, its files", "tensortap, the same files", "tensortap, its runs", "times as fast", "goal")
    text = f"""## Comparing

`python -m benchmarks.comparing --write`; {machine()}; torch {torch.__version__}. From start to exit of the
process, and the most memory of one process; the same values on all sides; each figure is the best of {REPEATS} runs,
taken in turns. All of them run from bytecode, as installed packages do.

{table(header, rows)}

From {GROWTH[0]:,} to {GROWTH[1]:,} pairs of 1 × 64: {in_words(few)}, then {in_words(many)}, which is
{many.seconds / few.seconds:.1f} times the time (goal 11.5) and {many.peak / few.peak:.1f} times the memory (goal 5).

A pair of {LARGE[0]:,} × {LARGE[1]:,} bf16, 8 GiB each (files with holes: one value in 16 is not zero), with
`--memory {MEMORY}`: {in_words(large)}, the pages of mapped files counted.
"""
    print(text)
    if arguments.write:
        write_section("comparator", text)


if __name__ == "__main__":
    main()

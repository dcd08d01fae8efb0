"""Compare with SGLang's comparator: time from start to exit, on the same values.

    python -m benchmarks.comparing [--write] [--scratch DIR]

needs the development environment (SGLang is installed there as the peer). Each side writes what its own dumper
would write; both comparators run as processes of their own, in turns, and the best of two runs counts. ``--write`` puts
the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import machine, table, write_section
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder

REPEATS = 2


@dataclass(frozen=True)
class Scenario:
    """``layers`` tensors of one shape in each of ``steps`` steps."""

    title: str
    shape: tuple[int, int]
    layers: int
    steps: int

    @property
    def pairs(self) -> int:
        return self.layers * self.steps


SCENARIOS = [
    Scenario("one pair of 8 × 1024 bf16: start-up", (8, 1024), 1, 1),
    Scenario("400 pairs of 8 × 1024 bf16", (8, 1024), 20, 20),
    Scenario("4 pairs of 4096 × 4096 bf16", (4096, 4096), 4, 1),
]


def tensors(scenario: Scenario, noise: float) -> Iterator[tuple[int, int, torch.Tensor]]:
    for step in range(scenario.steps):
        for layer in range(scenario.layers):
            generator = torch.Generator().manual_seed(step * 1000 + layer)
            value = torch.randn(scenario.shape, generator=generator)
            yield step, layer, (value + noise * torch.randn(scenario.shape, generator=generator)).to(torch.bfloat16)


def write_ours(path: Path, scenario: Scenario, noise: float) -> None:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    rows = scenario.shape[0]
    current = -1
    for step, layer, value in tensors(scenario, noise):
        if step != current:
            span = SequenceSpan("request", step * rows, rows)
            recorder.step(layout=TokenLayout("extend", (span,), rows))
            current = step
        recorder.dump("hidden", value, dims="t h", layer_id=layer)
    recorder.close()


def write_theirs(path: Path, scenario: Scenario, noise: float) -> None:
    path.mkdir(parents=True)
    for index, (step, layer, value) in enumerate(tensors(scenario, noise)):
        keys = f"step={step}___rank=0___dump_index={index}___name=hidden___recompute_status=disabled___layer_id={layer}"
        meta = {"dims": "t h", "world_rank": 0, "world_size": 1}
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


def run(program: list[str], folder: Path) -> float:
    command = [sys.executable, *program, "--baseline-path", str(folder / "a"), "--target-path", str(folder / "b")]
    start = time.perf_counter()
    done = subprocess.run([*command, "--report-path", ""], capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return elapsed


def measure(scenario: Scenario, folder: Path) -> tuple[float, float, float]:
    """Best seconds of SGLang's comparator, ours on SGLang's files, ours on our runs."""
    write: dict[str, Callable[[Path, Scenario, float], None]] = {"ours": write_ours, "theirs": write_theirs}
    for kind, writer in write.items():
        for name, noise in (("a", 0.0), ("b", 1e-3)):
            (folder / kind).mkdir(exist_ok=True, parents=True)
            writer(folder / kind / name, scenario, noise)
    found = []
    for _ in range(REPEATS):
        found.append(
            (
                run(["-c", PEER], folder / "theirs"),
                run(["-m", "comparator"], folder / "theirs"),
                run(["-m", "comparator"], folder / "ours"),
            )
        )
    return min(one[0] for one in found), min(one[1] for one in found), min(one[2] for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="where to write the runs (default: a temporary folder)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    for scenario in SCENARIOS:
        folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
        try:
            theirs, on_theirs, ours = measure(scenario, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        ratio = f"{theirs / on_theirs:.1f} × / {theirs / ours:.1f} ×"
        rows.append((scenario.title, f"{theirs:.2f} s", f"{on_theirs:.2f} s", f"{ours:.2f} s", ratio))
    peer = f"SGLang {importlib.metadata.version('sglang')}"
    text = f"""## Comparing

`python -m benchmarks.comparing --write`; {machine()}; torch {torch.__version__}. From start to exit of the
process, the same values on all sides; each figure is the best of {REPEATS} runs, taken in turns.

{table(("", f"{peer}, its files", "tensortap, the same files", "tensortap, its runs", "times as fast"), rows)}
"""
    print(text)
    if arguments.write:
        write_section("comparator", text)


if __name__ == "__main__":
    main()

"""Recording, side by side with SGLang's own dumper, ``tensor.clone()`` and a plain ``write``.

    python -m benchmarks.recording [--write] [--rounds N] [--folder DIR]

Both sides run in one process and take turns; each figure is the best of the rounds, each goal a ratio of two such
figures of this run. ``--write`` puts the tables into docs/benchmarks.md. SGLang's dumper runs with its console output
switched off, which is faster than its default.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import machine, table, write_section

SMALL_SHAPE = (8, 1024)
LARGE_SHAPE = (4096, 4096)
SMALL_CALLS = 5_000
SMALL_CALLS_OF_PEER = 500
LARGE_CALLS = 16
PAGE_CACHE_BYTES = 640 << 20


@dataclass
class Samples:
    """Seconds per call, by what was measured, over the rounds."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)

    def best(self, what: str) -> float:
        """What it takes undisturbed: other work and a busy disk only ever make it longer."""
        return min(self.seconds[what])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="where to record (default: a temporary folder)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tensortap-benchmark-", dir=arguments.folder))
    samples = Samples()
    try:
        peer = _sglang_dumper(folder)
        ours = _recorder()
        for measure in (partial(_measure_small, ours, peer), partial(_measure_large, ours), _measure_switched_off):
            for number in range(arguments.rounds + 1):
                # The first round warms up code, allocator and page cache.
                measure(folder / f"round-{number}", samples if number else Samples())
                shutil.rmtree(folder / f"round-{number}", ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = _report(samples, with_peer=peer is not None, rounds=arguments.rounds)
    print(text)
    if arguments.write:
        if peer is None:
            print("not written: SGLang is not installed, so half of the comparison is missing", file=sys.stderr)
            return 1
        write_section("dumper", text)
    return 0


def _sglang_dumper(folder: Path) -> Callable[[Path], Any] | None:
    """Makes an SGLang dumper that records into a folder; None when SGLang is not installed."""
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        print("SGLang's dumper is not measured: SGLang is not installed", file=sys.stderr)
        return None
    # Its dumper needs nothing of the rest of SGLang, whose import takes long and wants a GPU's libraries.
    root = Path(found.submodule_search_locations[0])
    for name in ("sglang", "sglang.srt", "sglang.srt.managers"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    # Used by its control over HTTP alone.
    sys.modules["sglang.srt.managers.io_struct"] = types.ModuleType("io_struct")
    for name in ("sock_recv", "sock_send", "wrap_as_pickle"):
        setattr(sys.modules["sglang.srt.managers.io_struct"], name, None)
    from sglang.srt.debug_utils.dumper import DumperConfig, _Dumper

    def make(path: Path) -> Any:
        config = DumperConfig(enable=True, dir=str(path), exp_name="run", enable_output_console=False)
        return _Dumper(config=config)

    return make


def _recorder() -> Any:
    from dumper.recording.recorder import Recorder
    from dumper.settings import Settings

    return Recorder(Settings(enable=True, control=False))


def _measure_small(ours: Any, peer: Callable[[Path], Any] | None, path: Path, samples: Samples) -> None:
    values = [torch.randn(SMALL_SHAPE, dtype=torch.bfloat16) for _ in range(8)]
    if peer is not None:
        theirs = peer(path / "theirs")
        theirs.step()
        start = time.perf_counter()
        for number in range(SMALL_CALLS_OF_PEER):
            theirs.dump("attn_output", values[number % 8], dims="t h", layer_id=number % 48)
        samples.add("small peer", (time.perf_counter() - start) / SMALL_CALLS_OF_PEER)
    gc.collect()
    ours.configure(dir=str(path), run="ours")
    ours.step()
    ours.dump("warm-up", values[0])
    ours.flush()
    start = time.perf_counter()
    for number in range(SMALL_CALLS):
        ours.dump("attn_output", values[number % 8], dims="t h", layer_id=number % 48)
    called = time.perf_counter()
    ours.flush()
    flushed = time.perf_counter()
    ours.close()
    closed = time.perf_counter()
    samples.add("small called", (called - start) / SMALL_CALLS)
    samples.add("small durable", (flushed - start) / SMALL_CALLS)
    samples.add("small closed", (closed - start) / SMALL_CALLS)


def _measure_large(ours: Any, path: Path, samples: Samples) -> None:
    values = [torch.randn(LARGE_SHAPE).to(torch.bfloat16) for _ in range(2)]
    start = time.perf_counter()
    for number in range(LARGE_CALLS):
        values[number % 2].clone()
    samples.add("large clone", (time.perf_counter() - start) / LARGE_CALLS)
    sides = [partial(_measure_plain_write, path / "plain"), partial(_measure_large_records, path / "records", ours)]
    # Whoever comes second may find the machine in another state.
    for measure in sides if len(samples.seconds["large clone"]) % 2 else reversed(sides):
        measure(values, samples)


def _measure_plain_write(path: Path, values: list[torch.Tensor], samples: Samples) -> None:
    raw = [memoryview(value.view(torch.uint8).numpy()).cast("B") for value in values]
    _prepare_page_cache(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    start = time.perf_counter()
    for number in range(LARGE_CALLS):
        rest = raw[number % 2]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    os.close(descriptor)
    samples.add("large plain write", (time.perf_counter() - start) / LARGE_CALLS)
    path.unlink()


def _measure_large_records(path: Path, ours: Any, values: list[torch.Tensor], samples: Samples) -> None:
    ours.configure(dir=str(path), run="ours")
    ours.step()
    _prepare_page_cache(path)
    start = time.perf_counter()
    for number in range(LARGE_CALLS):
        ours.dump("weights", values[number % 2], dims="a b", layer_id=number)
    called = time.perf_counter()
    ours.flush()
    flushed = time.perf_counter()
    ours.close()
    samples.add("large called", (called - start) / LARGE_CALLS)
    samples.add("large durable", (flushed - start) / LARGE_CALLS)
    samples.add("large closed", (time.perf_counter() - start) / LARGE_CALLS)


def _prepare_page_cache(folder: Path) -> None:
    """Give every measurement the same start: memory for the page cache that was in use a moment ago.

    A virtual machine may have returned free memory to its host, and the first who writes pays for getting it back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "page-cache"
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(PAGE_CACHE_BYTES // len(block)):
            file.write(block)
    path.unlink()


def _measure_switched_off(_: Path, samples: Samples) -> None:
    from dumper.recording.recorder import Recorder
    from dumper.settings import Settings

    info = {"id": "m.f#1:x", "name": "x", "kind": "dump", "target": "m.f", "file": "m.py", "line": 1}
    taps = Recorder(Settings(control=False)).install_taps("m", (info,), {})
    calls = 1_000_000

    def empty() -> None:
        for _ in range(calls):
            pass

    def tapped() -> None:
        for _ in range(calls):
            if taps[0].on:
                taps[0].record(None)

    start = time.perf_counter()
    empty()
    middle = time.perf_counter()
    tapped()
    samples.add("tap off", (time.perf_counter() - middle - (middle - start)) / calls)


def _report(samples: Samples, *, with_peer: bool, rounds: int) -> str:
    best = samples.best
    nbytes = LARGE_SHAPE[0] * LARGE_SHAPE[1] * 2
    rows = []
    if with_peer:
        theirs = best("small peer")
        peer = f"SGLang's dumper {importlib.metadata.version('sglang')}"
        for what, key, goal in (
            ("calls a second in the calling thread", "small called", 30),
            ("calls a second until in the page cache", "small durable", 15),
            ("calls a second, closing the run included", "small closed", 15),
        ):
            rows.append(
                (
                    f"8×1024 bf16: {what}",
                    f"{1 / best(key):,.0f}",
                    f"{1 / theirs:,.0f} ({peer})",
                    f"{theirs / best(key):.1f}×",
                    f"≥ {goal}×",
                )
            )
    clone, plain = best("large clone"), best("large plain write")
    rows.append(
        (
            "4096×4096 bf16: time until the call returns",
            f"{best('large called') * 1e3:.1f} ms",
            f"{clone * 1e3:.1f} ms (tensor.clone())",
            f"{best('large called') / clone:.2f}×",
            "≤ 1.5×",
        )
    )
    for what, key in (("in the page cache", "large durable"), ("closed", "large closed")):
        rows.append(
            (
                f"4096×4096 bf16: bytes a second until {what}",
                f"{nbytes / best(key) / 1e9:.2f} GB/s",
                f"{nbytes / plain / 1e9:.2f} GB/s (plain write)",
                f"{plain / best(key) * 100:.0f}%",
                "≥ 90%",
            )
        )
    rows.append(("A tap that is switched off", f"{best('tap off') * 1e9:.0f} ns", "-", "-", "< 100 ns"))
    header = ("what", "tensortap", "beside it", "ratio", "goal")
    return f"""## Recording

`python -m benchmarks.recording --write`: {machine()}, torch {torch.__version__}. Both sides
run in one process and take turns; each figure is the best of {rounds} rounds. Small tensors: {SMALL_CALLS:,} calls a
round (SGLang's dumper {SMALL_CALLS_OF_PEER:,}); large: {LARGE_CALLS} calls back to back.

{table(header, rows)}
"""


if __name__ == "__main__":
    sys.exit(main())

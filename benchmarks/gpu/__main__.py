"""What recording costs a model on a CUDA device.

    python -m benchmarks.gpu [--budget SECONDS] [--out FOLDER] [--peer FOLDER] [--write] [--cpu]
    python -m benchmarks.gpu --write --from FILE

Sides take turns on one card in one process. Nothing is asserted: ratios are printed and written as JSON. ``--write``
puts them into docs/benchmarks.md, also those that were measured elsewhere (``--from``). ``--peer``: a folder with
SGLang's package, unpacked from its wheel, whose dumper is then one of the sides. ``--cpu``: a tiny model, to try it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.report import as_markdown
from benchmarks.report import machine, write_section
from testbed.devices import why_no_gpu

if TYPE_CHECKING:
    from benchmarks.gpu.decoder import Decoder

ROOM = 24 << 30
"""Bytes that a folder in memory should have free."""
FULL_BUDGET = 190
LIMITS = ((80, 35.0, 6.0), (80, 35.0, 6.0), (12, 65.0, 9.0))
"""Steps, seconds of all sides and of each, for each number of rows, within the full budget."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=FULL_BUDGET, help="seconds after which no further part begins")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for gpu.json")
    parser.add_argument("--peer", type=Path, help="folder with SGLang's package")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    parser.add_argument("--from", dest="measured", type=Path, help="figures that were measured before")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    arguments = parser.parse_args()
    if arguments.measured:
        results = json.loads(arguments.measured.read_text(encoding="utf-8"))
    else:
        reason = why_no_gpu()
        if reason and not arguments.cpu:
            print(f"not measured: {reason} (--cpu tries the benchmark with a tiny model)", file=sys.stderr)
            return 2
        results = measure(arguments)
    text = as_markdown(results)
    print(text)
    if arguments.write:
        write_section("gpu", text)
    return 0


class Parts:
    """What is measured, each part saved as soon as it is there."""

    def __init__(self, results: dict[str, Any], arguments: argparse.Namespace) -> None:
        self.results = results
        self._out = arguments.out
        self._deadline = time.monotonic() + arguments.budget
        self._share = arguments.budget / FULL_BUDGET

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part, which may fail."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self.results.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
        took = time.monotonic() - start
        self.results.setdefault("seconds", {})[name] = round(took, 1)
        (self._out / "gpu.json").write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        print(f"{name}: {took:.0f} s {self.results.get('errors', {}).get(name, '')}", file=sys.stderr, flush=True)

    def of_sides(self, sides: list[Any], x: Any, steps: int, seconds: float, a_side: float) -> dict[str, Any]:
        """Steps of sides, in turns."""
        from benchmarks.gpu import turns

        seconds = min(seconds * self._share, max(self._deadline - time.monotonic(), 1.0))
        found = turns.take_turns(sides, x, steps=steps, seconds=seconds, seconds_a_side=a_side * self._share)
        rows: dict[str, Any] = {name: times.milliseconds() for name, times in found.items()}
        return rows | {side.name: {"error": side.error} for side in sides if side.error}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts."""
    import torch

    from benchmarks.gpu.decoder import ON_DEVICE, TINY, Decoder
    from dumper.recording.shortcut import COMPILED

    device, size = ("cpu", TINY) if arguments.cpu else ("cuda", ON_DEVICE)
    results: dict[str, Any] = {
        "card": "no card: the CPU" if arguments.cpu else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "machine": machine(),
        "shortcut": COMPILED,
        "size": vars(size) | {"taps": size.taps},
        "eager": {},
        "graph": {},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    memory, disk = _folder("/dev/shm"), _folder(None)
    try:
        with torch.inference_mode(False), torch.no_grad():
            _measure_parts(Parts(results, arguments), Decoder(size, device), memory, disk, arguments.peer)
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    return results


def _measure_parts(parts: Parts, decoder: Decoder, memory: Path, disk: Path, peer: Path | None) -> None:
    from benchmarks.gpu import kernels, limits, turns
    from benchmarks.gpu.sides import eager_sides, graph_sides, indirect_sides

    results, part, size = parts.results, parts.part, decoder.size
    on_device = decoder.device == "cuda"
    eager = eager_sides(decoder, memory, disk, peer)
    small = decoder.input(size.tokens[0])
    indirect = indirect_sides(decoder, memory)
    called = [*eager[1:], *indirect]
    with part("calls"):
        calls = 500 if on_device else 100
        results["calls"] = {s.name: turns.microseconds_a_call(s, small, calls) for s in called}
    for rows in size.tokens[:2]:
        with part(f"calls between kernels, {rows}"):
            found = turns.microseconds_between_kernels(called, decoder, decoder.input(rows), 24 if on_device else 6)
            results.setdefault("between kernels", {})[rows] = found
    if on_device:
        with part("kernels"):
            results["kernels"] = kernels.microseconds(5)
        for rows in size.tokens[:2]:
            with part(f"graph, {rows}"):
                results["graph"][rows] = parts.of_sides(graph_sides(decoder, rows, memory), small, 50, 15, 3)
    for rows, (steps, seconds, a_side) in zip(size.tokens, LIMITS, strict=True):
        with part(f"eager, {rows}"):
            results["eager"][rows] = parts.of_sides(eager, decoder.input(rows), steps, seconds, a_side)
    if on_device:
        with part("launched"):
            x = decoder.input(size.tokens[1])
            results["launched"] = {s.name: turns.launched(s, x) for s in (*eager, *indirect) if not s.error}
    with part("Python beside the writer"):
        results["python"] = limits.python_beside_a_busy_writer(memory, decoder.device, 9)
    for name, folder in (("memory", memory), ("disk", disk)):
        with part(f"bandwidth, {name}"):
            results.setdefault("bandwidth", {})[name] = limits.gigabytes_a_second(folder, decoder.device, 3)


def _folder(where: str | None) -> Path:
    if where is not None and (not os.access(where, os.W_OK) or shutil.disk_usage(where).free < ROOM):
        where = None
    return Path(tempfile.mkdtemp(prefix="tensortap-benchmark-", dir=where))


if __name__ == "__main__":
    sys.exit(main())

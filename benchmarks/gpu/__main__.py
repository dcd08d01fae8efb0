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
from typing import Any

from benchmarks.gpu.report import as_markdown
from benchmarks.report import machine, write_section
from testbed.devices import why_no_gpu

ROOM = 24 << 30
"""Bytes that a folder in memory should have free."""
FULL_BUDGET = 175
LIMITS = ((30, 25.0, 4.0), (30, 30.0, 4.0), (12, 65.0, 9.0))
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


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts; each is saved as soon as it is there."""
    import torch

    from benchmarks.gpu import limits, turns
    from benchmarks.gpu.decoder import ON_DEVICE, TINY, Decoder
    from benchmarks.gpu.sides import eager_sides, graph_sides

    device, size = ("cpu", TINY) if arguments.cpu else ("cuda", ON_DEVICE)
    deadline, share = time.monotonic() + arguments.budget, arguments.budget / FULL_BUDGET
    results: dict[str, Any] = {
        "card": "no card: the CPU" if arguments.cpu else torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "machine": machine(),
        "size": vars(size) | {"taps": size.taps},
        "eager": {},
        "graph": {},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    memory, disk = _folder("/dev/shm"), _folder(None)

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            results.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
        took = time.monotonic() - start
        results.setdefault("seconds", {})[name] = round(took, 1)
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"{name}: {took:.0f} s {results.get('errors', {}).get(name, '')}", file=sys.stderr, flush=True)

    def left() -> float:
        return max(deadline - time.monotonic(), 1.0)

    def of_sides(sides: list[Any], x: Any, steps: int, seconds: float, a_side: float) -> dict[str, Any]:
        seconds = min(seconds * share, left())
        found = turns.take_turns(sides, x, steps=steps, seconds=seconds, seconds_a_side=a_side * share)
        rows: dict[str, Any] = {name: times.milliseconds() for name, times in found.items()}
        return rows | {side.name: {"error": side.error} for side in sides if side.error}

    try:
        with torch.inference_mode(False), torch.no_grad():
            decoder = Decoder(size, device)
            eager = eager_sides(decoder, memory, disk, arguments.peer)
            small = decoder.input(size.tokens[0])
            with part("calls"):
                calls = 500 if device == "cuda" else 100
                results["calls"] = {s.name: turns.microseconds_a_call(s, small, calls) for s in eager[1:]}
            if device == "cuda":
                for rows in size.tokens[:2]:
                    with part(f"graph, {rows}"):
                        results["graph"][rows] = of_sides(graph_sides(decoder, rows, memory), small, 30, 15, 3)
            for rows, (steps, seconds, a_side) in zip(size.tokens, LIMITS, strict=True):
                with part(f"eager, {rows}"):
                    results["eager"][rows] = of_sides(eager, decoder.input(rows), steps, seconds, a_side)
            if device == "cuda":
                with part("launched"):
                    x = decoder.input(size.tokens[1])
                    results["launched"] = {s.name: turns.launched(s, x) for s in eager if not s.error}
            with part("Python beside the writer"):
                results["python"] = limits.python_beside_a_busy_writer(memory, device, 5)
            for name, folder in (("memory", memory), ("disk", disk)):
                with part(f"bandwidth, {name}"):
                    results.setdefault("bandwidth", {})[name] = limits.gigabytes_a_second(folder, device, 3)
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        shutil.rmtree(disk, ignore_errors=True)
    return results


def _folder(where: str | None) -> Path:
    if where is not None and (not os.access(where, os.W_OK) or shutil.disk_usage(where).free < ROOM):
        where = None
    return Path(tempfile.mkdtemp(prefix="tensortap-benchmark-", dir=where))


if __name__ == "__main__":
    sys.exit(main())

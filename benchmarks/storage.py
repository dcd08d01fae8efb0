"""How fast runs are read from object storage on the loopback interface, beside the same files on the local disk.

``python -m benchmarks.storage`` prints; ``--write`` puts the table into docs/scale.md. The server is
``testbed.object_store``, a process of its own in Python: the table shows what the reader costs and how it hides
latency, not what a cloud can deliver.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.report import machine, table, write_section
from dumper.reading.open import open_run
from dumper.recording.recorder import Recorder
from testbed.object_store import ObjectStore
from testbed.paths import CHECKOUT

LARGE, SMALL = ("large", 16, (4096, 4096)), ("small", 4096, (8, 1024))
"""Name, records, shape; of bfloat16: 512 MiB and 64 MiB."""
LATENCIES = (0.0, 0.02)
ROUNDS = 3
MARKED = CHECKOUT / "docs" / "scale.md"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/scale.md")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, records, shape in (LARGE, SMALL):
            record(root / "bucket" / name, records, shape)
        rows = [_row("local disk, mapped", str(root / "bucket"))]
        for latency in LATENCIES:
            with serving(root, latency):
                rows.append(_row(f"S3, {latency * 1000:.0f} ms before each answer", "s3://bucket"))
    busy = f"{os.getloadavg()[0]:.0f} processes shared the processors"
    text = (
        f"`python -m benchmarks.storage --write`; {machine()}; the best of {ROUNDS} readings, checksums checked, files "
        f"in the cache of the system, while {busy}. Large: 16 records of 4096×4096 bf16; small: 4,096 of 8×1024.\n\n"
        + table(("where the run lies", "opened in", "large", "small", "small"), rows)
    )
    if options.write:
        write_section("storage", text, MARKED)
    print(text)
    return 0


def record(path: Path, records: int, shape: tuple[int, ...]) -> None:
    """A run of one rank and one step."""
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False)
    values = torch.randn(shape).to(torch.bfloat16)
    with recorder.step():
        for number in range(records):
            recorder.dump("hidden", values, dims="t h", layer_id=number)
    recorder.close()


@contextmanager
def serving(root: Path, latency: float) -> Iterator[None]:
    """The folder as S3, from another process, with its address in the environment."""
    command = [sys.executable, "-m", "testbed.object_store", str(root), str(latency)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        os.environ.update(ObjectStore(root, address=address).environment())
        try:
            yield
        finally:
            server.stdin.close()


def _row(what: str, place: str) -> tuple[str, ...]:
    opened, large = _read(f"{place}/large")
    _, small = _read(f"{place}/small")
    size = LARGE[1] * 4096 * 4096 * 2
    small_size = SMALL[1] * 8 * 1024 * 2
    return (
        what,
        f"{opened * 1000:.0f} ms",
        f"{size / large / 1e9:.2f} GB/s",
        f"{small_size / small / 1e9:.3f} GB/s",
        f"{SMALL[1] / small:,.0f} records/s",
    )


def _read(place: str) -> tuple[float, float]:
    """Seconds to open a run, and to read and check all its records."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run = open_run(place)
        opened = time.perf_counter()
        run.expect(run.records)
        for one in run.records:
            if not one.is_intact():
                raise SystemExit(f"{one.source} is damaged")
            one.array()
        times.append((opened - start, time.perf_counter() - opened))
    return min(first for first, _ in times), min(second for _, second in times)


if __name__ == "__main__":
    sys.exit(main())

"""How fast runs are compared by processes of this machine and by workers of Ray on it, from the local disk and from
object storage on the loopback interface.

``python -m benchmarks.cluster`` prints; ``--write`` puts the table into docs/scale.md. Workers and processes that begin
anew open the runs first: the time until that is done is given apart, and is not in the other figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.report import machine, table, write_section
from benchmarks.storage import MARKED, serving
from comparator.elsewhere import on_cluster, on_this_machine
from comparator.engine.cluster_connection import connected
from comparator.engine.cluster_files import FilesOnCluster
from comparator.engine.protocol import Engine
from comparator.options import Options
from comparator.pipeline import begin
from comparator.prepared import Prepared, prepare
from dumper.reading.open import open_run
from dumper.recording.recorder import Recorder
from dumper.storage.places import Workers
from testbed.ray_cluster import ray_cluster, ray_environment

LARGE, SMALL, ONE = ("large", 8, (4096, 4096)), ("small", 1024, (8, 1024)), ("one", 1, (8, 1024))
"""Name, records, shape; of bfloat16: 256 MiB and 16 MiB on each side."""

ROUNDS = 3

EngineOf = Callable[[Prepared], Engine | None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/scale.md")
    options = parser.parse_args(argv)
    os.environ.update(ray_environment())
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, records, shape in (LARGE, SMALL, ONE):
            record(root / "bucket" / name, records, shape)
        # The workers of the cluster find the server in the environment that the cluster has.
        with serving(root, 0.0), ray_cluster() as cluster:
            for where, place in (("local disk", str(root / "bucket")), ("S3", "s3://bucket")):
                for jobs in (1, 2):
                    rows.append(_row(where, f"`--jobs {jobs}`", place, jobs, lambda one, jobs=jobs: _here(one, jobs)))
                with connected(cluster.address):
                    for jobs in (1, 2):
                        name = f"Ray, {jobs} worker{'s' * (jobs > 1)}"
                        engine_of: EngineOf = lambda one, jobs=jobs: on_cluster(one, jobs)  # noqa: E731
                        rows.append(_row(where, name, place, jobs, engine_of, FilesOnCluster(jobs)))
    busy = f"{os.getloadavg()[0]:.0f} processes shared the processors"
    text = (
        f"`python -m benchmarks.cluster --write`; {machine()}; the best of {ROUNDS}; bytes of both sides, "
        f"checksums checked, files in the cache of the system, while {busy}. "
        f"Large: {LARGE[1]} pairs of 4096×4096 bf16; small: {SMALL[1]:,} of 8×1024."
        "\n\n" + table(("where the runs lie", "compared by", "begun in", "large", "small", "small"), rows)
    )
    if options.write:
        write_section("cluster", text, MARKED)
    print(text)
    return 0


def record(path: Path, records: int, shape: tuple[int, ...]) -> None:
    """Two runs of one rank and one step, which differ by about as much as rounding makes them."""
    generator = torch.Generator().manual_seed(0)
    values, other = (torch.randn(shape, generator=generator) for _ in range(2))
    for side, noise in (("a", 0.0), ("b", 1e-3)):
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(path), run=side, control=False)
        with recorder.step():
            for number in range(records):
                recorder.dump("hidden", (values * (1 + noise * other)).to(torch.bfloat16), dims="t h", layer_id=number)
        recorder.close()


def _here(prepared: Prepared, jobs: int) -> Engine | None:
    return on_this_machine(prepared, jobs) if jobs > 1 else None


def _row(
    where: str, name: str, place: str, jobs: int, engine_of: EngineOf, workers: Workers | None = None
) -> tuple[str, ...]:
    names = "one", "large", "small"
    # In turns: what the machine does beside them meets all alike, or the difference says nothing.
    rounds = [[_once(f"{place}/{one}", jobs, engine_of, workers) for one in names] for _ in range(ROUNDS)]
    begun, *both = (min(times) for times in zip(*rounds, strict=True))
    (more_large, large), (more_small, small) = (_beside(seconds, begun) for seconds in both)
    bytes_large, bytes_small = (2 * 2 * count * shape[0] * shape[1] for _, count, shape in (LARGE, SMALL))
    return (
        where,
        name,
        f"{begun:.2f} s",
        f"{more_large}{bytes_large / large / 1e9:.2f} GB/s",
        f"{more_small}{bytes_small / small / 1e9:.3f} GB/s",
        f"{more_small}{SMALL[1] / small:,.0f} pairs/s",
    )


def _beside(seconds: float, begun: float) -> tuple[str, float]:
    """What a comparison took beside its beginning; at least a tenth of that, and then it was more per second."""
    least = begun / 10
    return ("", seconds - begun) if seconds - begun >= least else ("> ", least)


def _once(place: str, jobs: int, engine_of: EngineOf, workers: Workers | None) -> float:
    start = time.perf_counter()
    prepared = prepare(*(open_run(f"{place}/{side}", workers=workers) for side in "ab"), Options())
    found = list(begin(prepared, jobs=jobs, engine=engine_of(prepared)))
    if any(one.category != "passed" for one in found):
        raise SystemExit(f"{place}: the runs should agree")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())

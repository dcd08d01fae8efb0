"""A rank that records without pause until it is killed (test_endings.py forks it)."""

from __future__ import annotations

from multiprocessing.connection import Connection

import numpy as np

from dumper import dumper
from dumper.adapters import Process
from dumper.recording import session


def record_without_pause(folder: str, rank: int, ranks: int, ready: Connection) -> None:
    """Each value is filled with its number; every twentieth is recorded once more, larger."""
    session.describe_process = lambda **_: Process(rank, ranks, {}, {}, "test")  # type: ignore[assignment]
    dumper.configure(enable=True, dir=folder, control=False, memory_budget="64MiB")
    ready.send("ready")
    number = 0
    while True:
        dumper.dump("small", np.full(500, number, dtype=np.int64))
        if number % 20 == 0:
            dumper.dump("large", np.full(100_000, number, dtype=np.int64))
        number += 1

"""What the tests on a device share: recorders, values that tell where they come from, and a busy device."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dumper import Run, open_run
from dumper.recording.recorder import Recorder
from dumper.recording.taps import Tap
from dumper.values.dtypes import PACKED
from dumper.writing.rank_stream import RankStream
from testbed.devices import why_no_gpu
from testbed.paths import CHECKOUT

CUDA = why_no_gpu() is None
DEVICE = "cuda" if CUDA else "cpu"
CYCLES_A_MILLISECOND = 1_700_000


class Recordings:
    """Recorders of one test, each with a run of its own."""

    def __init__(self, folder: Path, **always: Any) -> None:
        """``always``: settings of all of them."""
        self.folder = folder
        self._always = always
        self._recorders: list[Recorder] = []

    def start(self, **settings: Any) -> Recorder:
        recorder = Recorder()
        run = f"run-{len(self._recorders)}"
        chosen = {"enable": True, "dir": str(self.folder), "run": run, "control": False}
        recorder.configure(**{**chosen, **self._always, **settings})
        self._recorders.append(recorder)
        return recorder

    def read(self, recorder: Recorder, *, problems: int = 0) -> Run:
        """The run of a recorder, which is closed. ``problems``: how many it must have."""
        path = recorder.settings.run_path
        recorder.close()
        run = open_run(path)
        assert run.losses == 0, run.problems
        assert len(run.problems) == problems, run.problems
        return run

    def close(self) -> None:
        for recorder in self._recorders:
            recorder.close()


def taps(recorder: Recorder, *names: str, kind: str = "dump") -> tuple[Tap, ...]:
    """Taps as the patcher installs them."""
    infos = tuple(
        {"id": f"m.f#{number}:{name}", "name": name, "kind": kind, "target": "m.f", "file": "m.py", "line": number}
        for number, name in enumerate(names, 1)
    )
    return recorder.install_taps("m", infos, {})


def record(tap: Tap, value: Any, dims: str | None = None, **tags: Any) -> None:
    """What the patcher puts into a function."""
    if tap.on:
        try:
            tap.record(value, dims, **tags)
        except Exception:
            tap.failed()


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def keep_busy(milliseconds: float) -> None:
    """Keep the current stream busy for about so long."""
    if CUDA:
        torch.cuda._sleep(int(milliseconds * CYCLES_A_MILLISECOND))


def own_stream() -> contextlib.AbstractContextManager[Any]:
    """A block on a stream of its own."""
    return torch.cuda.stream(torch.cuda.Stream()) if CUDA else contextlib.nullcontext()


def pattern(base: int, elements: int) -> torch.Tensor:
    """int32 values that say which computation they come from, shape (elements,)."""
    return torch.arange(base, base + elements, dtype=torch.int32, device=DEVICE)


def is_pattern(found: Any, base: int) -> bool:
    """Whether a record holds ``pattern(base, …)``."""
    array = found.array().reshape(-1)
    return bool(np.array_equal(array, np.arange(base, base + array.size, dtype=np.int32)))


def is_all(found: Any, value: object) -> bool:
    """Whether every element of a record is ``value``."""
    return bool((found.array() == value).all())


def row_major_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in the order in which they are recorded."""
    if str(tensor.dtype).removeprefix("torch.") in PACKED:
        tensor = tensor.view(torch.uint8)  # torch copies no tensor of such a type
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def slow_writer(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have writers wait before each batch, as with a slow disk."""
    write = RankStream.write

    def slowly(stream: RankStream, *batch: Any) -> Any:
        time.sleep(seconds)
        return write(stream, *batch)

    monkeypatch.setattr(RankStream, "write", slowly)


def python(
    *arguments: str, timeout: float = 100, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A Python process that imports this checkout; output and errors together."""
    path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        check=False,
    )


def in_one_line(wrong: Sequence[object], most: int = 6) -> str:
    """What was wrong, for the message of an assertion."""
    return f"{len(wrong)} wrong: {'; '.join(map(str, wrong[:most]))}"

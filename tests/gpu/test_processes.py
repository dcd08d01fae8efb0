"""Forks, the end of a process, and data-parallel training."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dumper import dumper, open_run
from dumper.format.status import read_status
from testbed.paths import CHECKOUT
from tests.gpu.recordings import CUDA, DEVICE, Recordings, is_all, is_pattern, pattern, python, row_major_bytes

SECONDS = 60


def in_child(action: Callable[[], object]) -> int | None:
    """The exit status of a forked child that runs ``action``; None when it hangs, and is ended."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


class Items(torch.utils.data.Dataset[Any]):
    """Items whose making is recorded."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        value = torch.full((1000,), float(index))
        dumper.dump("item", value, i=index)
        return value


def loader(**options: Any) -> Any:
    return torch.utils.data.DataLoader(
        Items(), batch_size=4, num_workers=2, timeout=SECONDS, multiprocessing_context="fork", **options
    )


def test_children_of_a_process_that_records(tmp_path: Path) -> None:
    dumper.configure(enable=True, dir=str(tmp_path), run="fork", control=False)
    try:
        x = torch.randn(1 << 20, device=DEVICE)
        for number in range(10):
            dumper.dump("x", x, i=number)
            dumper.dump("tiny", x[:10], i=number)
        dumper.flush()
        assert in_child(lambda: None) == 0
        for number in range(100):
            dumper.dump("x", x, i=number)
        # Copies are on their way now.
        assert in_child(lambda: None) == 0
        assert in_child(lambda: dumper.dump("child", torch.ones(5))) == 0
        assert in_child(lambda: (dumper.dump("child", torch.ones(5)), dumper.close())) == 0
        assert in_child(gc.collect) == 0
        got = []
        for batch in loader(pin_memory=CUDA):
            on_device = batch.to(DEVICE, non_blocking=True)
            dumper.dump("batch", on_device)
            got += on_device[:, 0].tolist()
        assert sorted(got) == [float(number) for number in range(16)]
    finally:
        path = dumper.settings.run_path
        dumper.close()
        dumper.configure(enable=False)
    run = open_run(path)
    assert len(run.select(name="batch")) == 4
    assert len(run.select(name="x")) == 110
    assert all(bytes(record.payload()) == row_major_bytes(x) for record in run.select(name="x"))


FIRST_IN_CHILDREN = """
import sys, torch
from pathlib import Path
from dumper import dumper, open_run
from tests.gpu.test_processes import DEVICE, loader
torch.ones(3, device=DEVICE)
dumper.configure(enable=True, dir=sys.argv[1], run="run", control=False)
for batch in loader():
    dumper.dump("batch", batch.to(DEVICE))
dumper.close()
folder = Path(sys.argv[1], "run")
runs = [open_run(path) for path in (folder, *folder.glob("process-*"))]
assert sum(len(run.records) + run.losses for run in runs) == 16 + 4, [run.problems for run in runs]
assert len(runs) > 1
"""


def test_children_that_record_before_their_parent(tmp_path: Path) -> None:
    """One process has the file; the others record beside it, and none of them fails."""
    child = python("-c", FIRST_IN_CHILDREN, str(tmp_path))
    assert child.returncode == 0, child.stdout[-2000:]


RECORDS_FOR_EVER = """
import sys, torch
from pathlib import Path
from dumper import dumper
from tests.gpu.recordings import DEVICE, pattern
dumper.configure(enable=True, dir=sys.argv[1], run="killed", control=False)
large = torch.zeros(4 << 20, dtype=torch.int32, device=DEVICE)
number = 0
while True:
    with dumper.step():
        for layer in range(20):
            dumper.dump("small", pattern(number * 3, 512), i=number, layer_id=layer)
        large.fill_(number)
        dumper.dump("large", large, i=number)
    number += 1
    if number == 20:
        Path(sys.argv[1], "started").touch()
"""


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    """What is in the file is right, what is not is counted, and the run is repaired."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen([sys.executable, "-c", RECORDS_FOR_EVER, str(tmp_path)], env=environment)
    try:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "started").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.02)
        time.sleep(0.5)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (tmp_path / "started").exists()
    run = open_run(tmp_path / "killed")
    assert run.records
    for record in run.records:
        number = record.tags["i"]
        assert is_pattern(record, number * 3) if record.name == "small" else is_all(record, number)
    counts: dict[str, int] = {}
    for file in run.path.glob("rank-*.status"):
        counts |= read_status(file.read_bytes()) or {}
    assert counts["submitted"] - len(run.records) == run.losses
    for command in ("repair", "verify"):
        done = python("-m", "dumper", command, str(run.path))
        assert done.returncode == 0, done.stdout[-1000:]


def test_data_parallel_training(recordings: Recordings) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    store = tempfile.mktemp()
    dist.init_process_group("nccl" if CUDA else "gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh(DEVICE, (1, 1), mesh_dim_names=("dp", "tp"))
        recorder = recordings.start()
        layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).to(DEVICE)
        model = torch.nn.parallel.DistributedDataParallel(layers)
        with recorder.attach(model, "**", grad=True) as attached:
            for _ in range(3):
                recorder.step()
                out = model(torch.randn(5, 64, device=DEVICE))
                y = out.clone()
                dist.all_reduce(y)
                recorder.dump("reduced", y)
                y.zero_()
                out.sum().backward()
        assert attached.paths
        assert mesh.ndim == 2  # whose axes are recorded while it exists
        run = recordings.read(recorder)
    finally:
        dist.destroy_process_group()
    header = run.headers[0]
    assert (header.rank, header.world_size, header.framework) == (0, 1, "torch.distributed")
    assert {axis: tuple(place) for axis, place in header.parallel.items()} == {"dp": (0, 1), "tp": (0, 1)}
    assert len(run.select(name="reduced")) == 3
    assert all(bool((record.array() != 0).any()) for record in run.select(name="reduced"))


def test_patterns_tell_values_apart(recordings: Recordings) -> None:
    """The test of what these tests rely on."""
    recorder = recordings.start()
    recorder.dump("x", pattern(5, 100))
    (record,) = recordings.read(recorder).records
    assert is_pattern(record, 5)
    assert not is_pattern(record, 6)


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")

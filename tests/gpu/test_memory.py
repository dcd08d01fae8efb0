"""Memory on both sides: budgets are kept, nothing grows, what is not used is given back, and none left is no crash."""

from __future__ import annotations

import shutil

import pytest
import torch

from dumper import open_run
from tests.gpu.recordings import CUDA, DEVICE, Recordings, is_pattern, pattern, slow_writer, synchronize

MIB = 1 << 20


def host_mebibytes(what: str = "VmRSS") -> int:
    """Memory of this process, in MiB."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith(what + ":"))


def pinned_bytes() -> int:
    return int(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0))


def device_bytes() -> int:
    synchronize()
    return torch.cuda.memory_allocated() if CUDA else 0


@pytest.mark.parametrize("policy", ["wait", "drop"])
def test_a_budget_that_the_writer_cannot_keep_up_with(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    slow_writer(monkeypatch, 0.02)
    recorder = recordings.start(memory_budget="64MiB", when_full=policy)
    before = device_bytes()
    for number in range(30):
        x = pattern(number * 3, 4 * MIB)
        recorder.dump("x", x, i=number)
        x.zero_()
    assert device_bytes() - before <= 160 * MIB
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert all(is_pattern(record, record.tags["i"] * 3) for record in run.records)
    assert len(run.records) + run.losses == 30
    assert (run.losses > 0) == (policy == "drop")


def test_values_larger_than_the_whole_budget(recordings: Recordings) -> None:
    recorder = recordings.start(memory_budget="16MiB")
    for _ in range(2):
        recorder.dump("x", pattern(5, 16 * MIB))
    assert [is_pattern(record, 5) for record in recordings.read(recorder).records] == [True, True]


def test_nothing_grows_over_small_records(recordings: Recordings) -> None:
    recorder = recordings.start()
    x = torch.randn(256, device=DEVICE)
    marks = []
    total = 60_000 if CUDA else 4_000
    for number in range(total):
        if number % 1000 == 0:
            recorder.step()
        recorder.dump("x", x, layer_id=number % 50)
        if number in (total // 5, total - 1):
            recorder.flush()
            marks.append((device_bytes(), host_mebibytes("RssAnon")))
    (device, host), (device_at_end, host_at_end) = marks
    assert device_at_end - device <= MIB
    assert host_at_end - host <= 64
    assert len(recordings.read(recorder).records) == total


@pytest.mark.parametrize(("level", "total"), [("hash", 400), ("full", 120)])
def test_nothing_grows_over_large_records(recordings: Recordings, level: str, total: int) -> None:
    recorder = recordings.start(level=level, memory_budget="512MiB")
    total = total if CUDA else 20
    x = torch.randint(0, 255, (16 * MIB,), dtype=torch.uint8, device=DEVICE)
    marks = []
    for number in range(total):
        recorder.dump("x", x, i=number % 7)
        x.add_(1)
        if number in (total // 2, total - 1):
            recorder.flush()
            marks.append((device_bytes(), host_mebibytes()))
    (device, host), (device_at_end, host_at_end) = marks
    assert device_at_end - device <= 32 * MIB
    assert host_at_end - host <= 300
    run = recordings.read(recorder)
    assert len(run.records) == total
    shutil.rmtree(run.path)


@pytest.mark.cuda
def test_pinned_memory_stays_within_the_budget_and_is_given_back(recordings: Recordings) -> None:
    """As torch counts it, which rounds pieces up to powers of two."""
    before = pinned_bytes()
    recorder = recordings.start(memory_budget="256MiB")
    x = torch.randint(0, 255, (24 * MIB + 3,), dtype=torch.uint8, device=DEVICE)
    for number in range(20):
        recorder.dump("x", x, i=number)
    recorder.flush()
    assert pinned_bytes() - before <= 256 * MIB
    recordings.read(recorder)
    assert pinned_bytes() - before <= 32 * MIB


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["full", "hash", "stats"])
def test_a_device_without_memory_loses_values_and_no_more(recordings: Recordings, level: str) -> None:
    """Of this process alone: a fraction of the device is all that torch gives it."""
    x = torch.ones(64 * MIB, dtype=torch.bfloat16, device=DEVICE)
    recorder = recordings.start(level=level, memory_budget="3GiB")
    recorder.dump("small", x[:1000], i=0)
    recorder.flush()
    synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * MIB) / total)
        recorder.dump("x", x)
        recorder.dump("small", x[:1000], i=1)
        assert float((x[:1000] * 2).sum()) == 2000
        synchronize()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    names = [record.name for record in run.records]
    # What needs no memory of torch's in proportion to the value is recorded.
    assert (run.losses, names) in [(1, ["small", "small"]), (0, ["small", "x", "small"])]


@pytest.mark.cuda
def test_the_model_gets_the_memory_that_a_copy_holds(recordings: Recordings) -> None:
    """There is room for the copy alone, and the model's next allocation needs it."""
    x = torch.ones(128 * MIB, dtype=torch.bfloat16, device=DEVICE)
    recorder = recordings.start(memory_budget="3GiB")
    recorder.dump("warm", x[: 32 * MIB])
    recorder.flush()
    synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 384 * MIB) / total)
        for number in range(3):
            torch.cuda._sleep(50_000_000)
            recorder.dump("x", x, n=number)
            torch.empty(320 * MIB, dtype=torch.uint8, device=DEVICE).zero_()
        synchronize()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    path = recorder.settings.run_path
    recorder.close()
    run = open_run(path)
    assert all(bool((record.tensor() == 1).all()) for record in run.select(name="x"))
    assert len(run.select(name="x")) + run.losses == 3

"""The kernels of levels ``stats`` and ``hash``: that they run at all, on any stream, for any size, in one launch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dumper.memory.device_reductions import DeviceReductions
from dumper.values import device_kernels
from dumper.values.device_kernels import launching
from dumper.values.fingerprint import fingerprint
from dumper.values.measures import device_statistics, named_statistics
from tests.gpu.recordings import DEVICE, Recordings

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes another way is recorded alike, so that nobody would notice."""
    if not device_kernels.available():
        pytest.skip("there is no Triton here")

    def fail(self: DeviceReductions, error: Exception) -> None:
        raise AssertionError("a kernel could not be used") from error

    monkeypatch.setattr(DeviceReductions, "_failure", fail)


def bytes_of(value: torch.Tensor) -> Any:
    return value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("level", ["stats", "hash"])
def test_a_level_takes_one_launch_and_no_memory(recordings: Recordings, level: str) -> None:
    recorder = recordings.start(level=level)
    value = torch.randn(4096, 1024, device=DEVICE, dtype=torch.bfloat16)
    recorder.dump("x", value)
    recorder.flush()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            recorder.dump("x", value)
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == before
    launched = [event for event in profile.events() if event.name in ("statistics", "fingerprint")]
    others = [event.name for event in profile.events() if "elementwise" in event.name or "reduce" in event.name]
    assert (len(launched), others) == (10, [])
    records = recordings.read(recorder).records
    assert len(records) == 11
    if level == "hash":
        assert {record.fingerprint for record in records} == {
            fingerprint("bfloat16", tuple(value.shape), bytes_of(value))
        }
    else:
        expected = named_statistics(device_statistics(value.cpu()).tolist())
        for record in records:
            assert record.statistics == pytest.approx(expected, rel=1e-9)


def test_more_elements_than_32_bits_count(recordings: Recordings) -> None:
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("the device has too little memory left")
    recorder = recordings.start(level='stats if name == "stats"; hash')
    value = torch.zeros(2**31 + 100, dtype=torch.int8, device=DEVICE)
    value[-3:] = torch.tensor([5, -7, 100], device=DEVICE)
    recorder.dump("stats", value)
    recorder.dump("hash", value)
    value[-1] = 101
    recorder.dump("hash", value)
    stats, one, other = recordings.read(recorder).records
    assert stats.statistics == pytest.approx(
        {
            "min": -7,
            "max": 100,
            "mean": 98 / len(value),
            "abs_mean": 112 / len(value),
            "l2": 10074**0.5,
            "nan": 0,
            "inf": 0,
        }
    )
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "bfloat16", "int64"])
def test_statistics_of_small_and_large_tensors(recordings: Recordings, dtype: str) -> None:
    check_statistics(recordings, dtype)


@pytest.fixture(params=[1, 2], ids=["sm_75", "sm_80"])
def older_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launching, "_instructions", lambda device: request.param)
    launching.statistics_launcher.cache_clear()
    yield
    launching.statistics_launcher.cache_clear()


@pytest.mark.usefixtures("older_device")
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "float8_e5m2"])
def test_statistics_by_instructions_of_older_devices(recordings: Recordings, dtype: str) -> None:
    check_statistics(recordings, dtype)


def check_statistics(recordings: Recordings, dtype: str) -> None:
    """Of a tensor that fills no tile, one with whole tiles alone, two with more than all programs take at once; the
    last one is finite."""
    recorder = recordings.start(level="stats")
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    values = []
    for number, (length, bits) in enumerate(((1_003, 0xFF), (1 << 16, 0xFF), (9_000_007, 0xFF), (9_000_007, 0xBF))):
        found = torch.randint(0, 256, (length * kind.itemsize,), dtype=torch.uint8, generator=generator)
        found &= 1 if dtype == "bool" else bits
        values.append(found.view(kind))
        recorder.dump("x", values[-1].to(DEVICE), number=number)
    records = recordings.read(recorder).records
    for value, record in zip(values, records, strict=True):
        expected = named_statistics(device_statistics(value).tolist())
        found = dict(record.statistics)
        for name in ("abs_mean", "l2") if dtype == "float8_e5m2" else ():  # sums of 16 are float32
            assert found.pop(name) == pytest.approx(expected.pop(name), rel=1e-7), record.tags
        scale = 1e-9 * abs(record.statistics["abs_mean"])
        assert found == pytest.approx(expected, rel=1e-9, abs=scale), record.tags


def test_streams_and_threads_at_once(recordings: Recordings) -> None:
    recorder = recordings.start(level='stats if name == "stats"; hash')
    values = [torch.randn(2_000_000 + number, device=DEVICE) for number in range(8)]

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                recorder.dump("stats", values[number], number=number)
                recorder.dump("hash", values[number], number=number)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = recordings.read(recorder)
    assert len(run.records) == 320
    for number, value in enumerate(values):
        found = [record for record in run.records if record.tags["number"] == number]
        prints = {record.fingerprint for record in found if record.name == "hash"}
        assert prints == {fingerprint("float32", tuple(value.shape), bytes_of(value))}
        numbers = {bytes(record.payload()) for record in found if record.name == "stats"}
        # The order of all sums is fixed.
        assert len(numbers) == 1
        expected = named_statistics(device_statistics(value.cpu()).tolist())
        assert next(record for record in found if record.name == "stats").statistics == pytest.approx(
            expected, rel=1e-9
        )

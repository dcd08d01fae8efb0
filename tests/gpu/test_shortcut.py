"""What the compiled shortcut records of values that come as others came before: by direct launches, and without
them (cudaMemcpyAsync, and Triton's launcher for reductions)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dumper.memory import copy_kernel
from dumper.memory.device_staging import DeviceStager
from dumper.recording import session
from dumper.recording.recorder import Recorder
from dumper.recording.shortcut import COMPILED
from dumper.writing import writer
from tests.gpu.recordings import (
    CUDA,
    DEVICE,
    Recordings,
    in_one_line,
    keep_busy,
    own_stream,
    row_major_bytes,
    synchronize,
)

pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled modules were not built")

ROUNDS = 6


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names of what did not take the shortcut."""
    names: list[Any] = []
    submit_any = Recorder._submit_any

    def noted(self: Recorder, source: Any, *more: Any) -> None:
        names.append(source.name)
        submit_any(self, source, *more)

    monkeypatch.setattr(Recorder, "_submit_any", noted)
    return names


@pytest.fixture(autouse=True)
def _at_leisure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer leaves slabs alone until it is asked for what is in them: a value that comes while it sends one goes
    the long way. Large values would wake it, and have it send what comes before them."""
    monkeypatch.setattr(writer, "LONG_NAP", 30.0)
    monkeypatch.setattr(session, "SMALL", 1 << 40)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each kind of value that was prepared: whether the driver launches its kernel."""
    found: list[bool] = []
    prepared = DeviceStager.prepared

    def noted(self: DeviceStager, *arguments: Any) -> Any:
        result = prepared(self, *arguments)
        found.append(result is not None and result.direct is not None)
        return result

    monkeypatch.setattr(DeviceStager, "prepared", noted)
    return found


def of_bytes(nbytes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda memory: memory[:nbytes]


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{f"{nbytes} bytes": of_bytes(nbytes) for nbytes in (0, 1, 15, 16, 17, 4095, 8192, 262_144, 1_000_003, 1 << 20)},
    "unaligned": lambda memory: memory[3:8000],
    "bf16": lambda memory: memory[:65536].view(torch.bfloat16).view(32, 1024),
    "a part of each row": lambda memory: memory[: 96 * 1024].view(torch.bfloat16).view(32, 3, 512)[:, 1],
    "an odd part of each row": lambda memory: memory[: 96 * 1024].view(32, 3072)[:, 5:200],
    "transposed": lambda memory: memory[:8192].view(64, 128).t(),
}


@pytest.mark.parametrize("level", ["full", "sample(rows=7)", "sample(stride=3)"])
def test_copies_bit_for_bit(
    recordings: Recordings,
    long_way: list[Any],
    launched: list[bool],
    level: str,
    direct_launch: bool,
) -> None:
    recorder = recordings.start(level=level)
    recorder.step()
    memory = torch.empty(1 << 21, dtype=torch.uint8, device=DEVICE)
    kept: dict[str, list[bytes]] = {name: [] for name in VIEWS}
    for number in range(ROUNDS):
        content = (torch.arange(memory.numel(), device=DEVICE, dtype=torch.int32) * (2 * number + 3) % 251).byte()
        for name, view in VIEWS.items():
            memory.copy_(content)
            value = view(memory)
            recorder.dump(name, value, "t h")
            rows = {"full": slice(None), "sample(rows=7)": slice(7), "sample(stride=3)": slice(None, None, 3)}[level]
            kept[name].append(row_major_bytes(value[rows]))
            memory.fill_(0xEE)
    run = recordings.read(recorder)
    found: dict[str, list[bytes]] = {name: [] for name in VIEWS}
    for record in run.records:
        found[record.name].append(bytes(record.payload()))
    wrong = [name for name in VIEWS if found[name] != kept[name]]
    assert not wrong, in_one_line(wrong)
    # Rows that do not follow on one another are for direct launches, those of a byte for none.
    taken = "8192 bytes" if level != "sample(stride=3)" else "bf16" if direct_launch else None
    if taken is not None and (CUDA or level == "full"):
        assert long_way.count(taken) <= ROUNDS // 2, "the shortcut was not taken"
    if CUDA:
        assert any(launched) == direct_launch


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["full", "stats", "hash"])
def test_what_launches(
    recordings: Recordings, long_way: list[Any], launched: list[bool], level: str, direct_launch: bool
) -> None:
    kernel = {"full": copy_kernel.KERNEL, "stats": "statistics", "hash": "fingerprint"}[level]
    recorder = recordings.start(level=level)
    recorder.step()
    value = torch.randn(64, 64, device=DEVICE)
    for _ in range(3):
        recorder.dump("x", value)
    rounds = kernels = 0
    expected = direct_launch or level != "full"
    # The profiler sometimes notes nothing at all.
    while rounds < 4 and not kernels and (expected or not rounds):
        rounds += 1
        synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(50):
                recorder.dump("x", value)
            synchronize()
        kernels = sum(event.name == kernel for event in profile.events())
    assert len(recordings.read(recorder).records) == 3 + 50 * rounds
    # The first of a kind, and what begins a slab.
    assert len(long_way) <= 3 + 5 * rounds
    if direct_launch:
        assert launched
        assert all(launched)
        assert kernels >= 45
    else:
        assert not any(launched)
        assert kernels == (0 if level == "full" else 50)


@pytest.mark.cuda
def test_threads_that_have_not_used_the_device(recordings: Recordings) -> None:
    recorder = recordings.start(level='stats if name == "stats"; full')
    recorder.step()
    value = torch.arange(4096, device=DEVICE)

    def work(number: int, on_stream: bool) -> None:
        with own_stream() if on_stream else contextlib.nullcontext():
            for _ in range(20):
                recorder.dump("full", value)
                recorder.dump("stats", value)

    synchronize()
    threads = [threading.Thread(target=work, args=(number, number % 2 == 1)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = recordings.read(recorder)
    assert len(run.records) == 12 * 40
    assert {record.array().tobytes() for record in run.records if record.name == "full"} == {
        value.cpu().numpy().tobytes()
    }
    assert len({bytes(record.payload()) for record in run.records if record.name == "stats"}) == 1


@pytest.mark.cuda
def test_other_threads_run_while_a_stream_is_full(recordings: Recordings) -> None:
    """The driver waits when a stream has been given more than it can hold, and others must not wait with it."""
    recorder = recordings.start()
    recorder.step()
    value = torch.arange(2048, device=DEVICE)
    for _ in range(5):
        recorder.dump("x", value)
    recorder.flush()
    turns = [0]
    done = threading.Event()

    def count() -> None:
        while not done.wait(0.001):
            turns[0] += 1

    other = threading.Thread(target=count)
    other.start()
    keep_busy(800)
    for _ in range(3000):
        recorder.dump("x", value)
    done.set()
    other.join()
    assert turns[0] > 50
    assert len(recordings.read(recorder).records) == 3005

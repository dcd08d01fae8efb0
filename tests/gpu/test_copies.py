"""Values of every kind, and values that change, are freed or are made on another stream right after they are dumped."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dumper.values.dtypes import KNOWN
from tests.gpu.recordings import (
    CUDA,
    DEVICE,
    Recordings,
    in_one_line,
    is_all,
    is_pattern,
    keep_busy,
    own_stream,
    pattern,
    row_major_bytes,
    synchronize,
)

LESS_ON_CPU = 1 if CUDA else 20


def values_of(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of a dtype in many memory layouts, by what they are."""
    generator = torch.Generator().manual_seed(1)
    size = torch.empty(0, dtype=dtype).element_size()

    def filled(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel() * size
        data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        return (data % 2 == 1 if dtype is torch.bool else data.view(dtype)).reshape(shape).to(DEVICE)

    x, large = filled(6, 5, 8), filled(1031, 509)
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "contiguous": lambda: x,
        "transposed": lambda: x.transpose(0, 2),
        "permuted": lambda: x.permute(2, 0, 1),
        "sliced": lambda: x[1:5:2, :, 1:7:3],
        "expanded": lambda: x[:, :1].expand(6, 9, 8),
        "at an offset": lambda: x[1:],
        "empty": lambda: x[:0],
        "empty inside": lambda: x[:, 2:2],
        "without dimensions": lambda: x[0, 0, 0],
        "overlapping": lambda: torch.as_strided(x, (4, 4, 4), (1, 2, 3)),
        "channels last": lambda: x.unsqueeze(0).contiguous(memory_format=torch.channels_last),
        "odd": lambda: filled(70_001),
        "large": lambda: large,
        "large, transposed": large.t,
        "large, sliced": lambda: large[::3, 1::2],
    }
    if dtype.is_floating_point and size > 1:
        makers["parameter"] = lambda: torch.nn.Parameter(torch.randn(33, 7, device=DEVICE).to(dtype))
        makers["with a gradient"] = lambda: torch.randn(33, 7, device=DEVICE).to(dtype).requires_grad_() * 2
    if dtype.is_complex:
        part = {torch.complex32: torch.half, torch.complex64: torch.float, torch.complex128: torch.double}[dtype]
        c = torch.view_as_complex(torch.randn(31, 17, 2, device=DEVICE).to(part))
        makers["conjugated"] = c.conj
        makers["conjugated, transposed"] = lambda: c.conj().t()
        makers["imaginary part of a conjugate"] = lambda: c.conj().imag
        makers["conjugated, without dimensions"] = lambda: c.conj()[0, 0]
    found = {}
    for name, make in makers.items():
        with contextlib.suppress(RuntimeError, NotImplementedError):  # torch cannot make every combination
            found[name] = make()
    return found


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_dtype_and_memory_layout_bit_for_bit(recordings: Recordings, mode: Any) -> None:
    recorder = recordings.start()
    kept = {}
    for name in sorted(KNOWN):
        dtype = getattr(torch, name, None)
        if dtype is None:
            continue
        for kind, value in values_of(dtype).items():
            with mode():
                recorder.dump("v", value, key=f"{name}, {kind}")
            kept[f"{name}, {kind}"] = value
    assert len(kept) > 200
    run = recordings.read(recorder)
    found = {record.tags["key"]: record for record in run.records}
    assert found.keys() == kept.keys()
    wrong = [
        key
        for key, value in kept.items()
        if (found[key].dtype, found[key].shape) != (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        or bytes(found[key].payload()) != row_major_bytes(value)
    ]
    assert not wrong, in_one_line(wrong)


def test_values_that_change_or_are_freed_at_once(recordings: Recordings) -> None:
    recorder = recordings.start()
    sizes = [(1 << 8, 1500), (1 << 12, 1000), (1 << 16, 500), (1 << 20, 100), (1 << 24, 12)]
    elements: dict[int, int] = {}
    for size, times in sizes:
        for _ in range(max(times // LESS_ON_CPU, 1)):
            number = len(elements) + 1
            if number % 97 == 0:
                keep_busy(2)
            with own_stream() if number % 3 == 0 else contextlib.nullcontext():
                changed = pattern(number * 3, size)
                recorder.dump("changed", changed, i=number)
                changed.fill_(-1)
                recorder.dump("after", changed[:4], i=number)
                freed = pattern(number * 3 + 1, size)
                recorder.dump("freed", freed, i=number)
                del freed
                taken = torch.full((size,), -7, dtype=torch.int32, device=DEVICE)  # what was freed
                recorder.dump("strided", taken.view(-1, 4)[:, 1], i=number)
                taken.add_(100)
            elements[number] = size
    run = recordings.read(recorder)
    assert len(run.records) == 4 * len(elements)
    wrong = []
    for record in run.records:
        number = record.tags["i"]
        right = {
            "changed": lambda r, n: is_pattern(r, n * 3) and r.shape == (elements[n],),
            "freed": lambda r, n: is_pattern(r, n * 3 + 1),
            "after": lambda r, n: is_all(r, -1),
            "strided": lambda r, n: is_all(r, -7) and r.shape == (elements[n] // 4,),
        }[record.name](record, number)
        if not right:
            wrong.append((record.name, number, elements[number], record.array().reshape(-1)[:4].tolist()))
    assert not wrong, in_one_line(wrong)


def test_threads_with_and_without_streams_of_their_own(recordings: Recordings) -> None:
    recorder = recordings.start()
    rounds = 800 // LESS_ON_CPU
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        rng = random.Random(thread)
        try:
            # Two threads share the default stream.
            with own_stream() if thread >= 2 else contextlib.nullcontext():
                for number in range(rounds):
                    size = 1 << rng.choice((6, 8, 10, 12, 14, 16) if number % 50 else (20, 22))
                    x = pattern(thread * 100_000_000 + number * 3, size)
                    if number % 61 == 0:
                        keep_busy(1)
                    with recorder.ctx(thread=thread):
                        recorder.dump("x", x, i=number)
                    x.mul_(0)
                    del x
                    torch.full((size,), -3, dtype=torch.int32, device=DEVICE).sub_(1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    run = recordings.read(recorder)
    assert len(run.records) == 8 * rounds
    wrong = [
        (record.tags["thread"], record.tags["i"])
        for record in run.records
        if not is_pattern(record, record.tags["thread"] * 100_000_000 + record.tags["i"] * 3)
    ]
    assert not wrong, in_one_line(wrong)


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["full", "hash", "sample(rows=8)", "stats"])
def test_no_dump_waits_for_the_device(recordings: Recordings, level: str) -> None:
    """torch raises at an operation that waits; and a stream that is busy is busy still after the calls."""
    recorder = recordings.start(level=level)
    large = torch.randn(4096, 2048, device=DEVICE, dtype=torch.bfloat16)
    values = (large, torch.randn(64, device=DEVICE), large.t()[::2])
    for _ in range(6):  # kernels, streams, host memory
        recorder.step()
        for value in values:
            recorder.dump("x", value)
    recorder.flush()
    synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for value in values:
            recorder.dump("checked", value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.flush()
    fresh = torch.randn(5_000_011, device=DEVICE)  # a size that host memory has to be made for
    for some in (values, (fresh,)):
        synchronize()
        keep_busy(500)
        for value in some:
            recorder.dump("busy", value)
        assert not torch.cuda.current_stream().query()
    recordings.read(recorder)

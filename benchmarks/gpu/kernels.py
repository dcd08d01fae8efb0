"""How long the kernels of ``stats`` and ``hash`` take on the device, beside reading alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.report import READING
from benchmarks.gpu.turns import alternating
from dumper.values.device_kernels import single
from dumper.values.device_kernels.launching import SCRATCH_BYTES

NBYTES = 32 << 20
TENSORS = 8
"""Together they are larger than the caches of a device."""
LAUNCHES = 24
DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool", "int32", "int64")


def microseconds(rounds: int) -> dict[str, float]:
    """Of one kernel for 32 MiB: statistics of tensors of some types, fingerprints, and reading. Medians of rounds.

    What reads alone is torch's largest value of int32, or of fingerprints, which take one reading, whichever is faster.
    """
    stored = [torch.randint(0, 120, (NBYTES,), device="cuda", dtype=torch.uint8) for _ in range(TENSORS)]
    scratch = torch.zeros(SCRATCH_BYTES // 8, device="cuda", dtype=torch.int64)
    out = torch.zeros(8, device="cuda", dtype=torch.float64)
    stream = torch.cuda.current_stream().cuda_stream
    device = torch.cuda.current_device()

    def by(launch: Callable[[torch.Tensor], object]) -> Callable[[], float]:
        def measure() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(1_000_000)  # so that all are launched before the first begins
            start.record()
            for number in range(LAUNCHES):
                launch(stored[number % TENSORS])
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e3 / LAUNCHES

        return measure

    def of_kernel(launch: single.Launch) -> Callable[[], float]:
        return by(lambda value: launch.run(value.data_ptr(), out.data_ptr(), scratch.data_ptr(), stream))

    measures = {"torch.amax": by(lambda value: value.view(torch.int32).amax())}
    measures["fingerprint"] = of_kernel(single.prepare_fingerprint(device, NBYTES))
    for name in DTYPES:
        dtype = getattr(torch, name)
        measures[f"statistics, {name}"] = of_kernel(single.prepare_statistics(device, dtype, NBYTES // dtype.itemsize))
    found = alternating(measures, rounds)
    found = {READING: min(found.pop("torch.amax"), found["fingerprint"]), **found}
    return {name: round(value, 2) for name, value in found.items()}

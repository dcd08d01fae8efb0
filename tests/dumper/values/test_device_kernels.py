"""The kernels of CUDA devices, as far as a machine without one can run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")


def test_kernels_in_the_interpreter() -> None:
    tests = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


class StandInDriver:
    """A driver of Triton's for a GPU that is not there: kernels are compiled for it, and launches are noted."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        driver = self

        class Launch:
            def __init__(self, source: Any, metadata: Any) -> None:
                self.types = dict(source.signature)

            def __call__(self, *arguments: Any) -> None:
                driver.launches.append((self.types, arguments))

        self.launcher_cls = Launch
        self.utils = SimpleNamespace(
            load_binary=lambda *arguments: (1, 2, 64, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 232_448},
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandInDriver:
    from triton.runtime import driver as drivers

    from dumper.values.device_kernels import many, single

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("kernels are not compiled for the interpreter")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for module in (single, many):
        monkeypatch.setattr(module, "processors", lambda device: 132)
    stand_in = StandInDriver()
    monkeypatch.setattr(drivers, "_active", stand_in)
    return stand_in


def test_kernels_compile_and_are_launched_by_their_handles(driver: StandInDriver) -> None:
    from dumper.values.device_kernels import many, single

    value = torch.zeros(1 << 20, dtype=torch.bfloat16)
    launch = single.prepare_statistics(-1, value.dtype, value.numel())
    for _ in range(2):
        launch(value.data_ptr(), 4096, 8192, 77)
    (types, first), second = driver.launches
    assert first == second[1]
    # Lengths have 64 bits whatever the first one is, and what is between grid and arguments is Triton's.
    assert (types["value"], types["n"], first[:4]) == ("*u16", "i64", (256, 1, 1, 77))
    arguments = first[-12:]
    assert (arguments[0], arguments[1], arguments[5]) == (value.data_ptr(), 1 << 20, 4096)
    # Of a byte: four groups of 16 KiB, the last of which is not full.
    single.prepare_statistics(-1, torch.int8, 50_001)(64, 4096, 8192, 77)
    types, arguments = driver.launches.pop()
    assert (types["value"], arguments[0]) == ("*u8", 4)
    numbers = [torch.zeros(3, dtype=torch.int64), torch.zeros(1 << 16, dtype=torch.int64)]
    many.StatisticsOfMany(numbers).launch(64, 77)
    many.FingerprintsOfMany([*numbers, value]).launch(64, 77)
    # One program for what a tile holds; more for more.
    assert [launched[1][0] for launched in driver.launches[2:]] == [1 + 64, 1 + 16 + 64]
    # As many as the device has room for, each with several tiles.
    many.FingerprintsOfMany([value] * 20).launch(64, 77)
    assert driver.launches[-1][1][0] == 20 * 13

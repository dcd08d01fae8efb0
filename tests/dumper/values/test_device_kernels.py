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
        launch.run(value.data_ptr(), 4096, 8192, 77)
    (types, first), second = driver.launches
    assert first == second[1]
    # Lengths have 64 bits whatever the first one is, and what is between grid and arguments is Triton's.
    assert (types["value"], types["n"], first[:4]) == ("*u16", "i64", (256, 1, 1, 77))
    arguments = first[-12:]
    assert (arguments[0], arguments[1], arguments[5]) == (value.data_ptr(), 1 << 20, 4096)
    # Compiled code gives the driver the same, and the two addresses that Triton adds.
    direct = launch.direct(8192)
    assert direct is not None
    given = list(direct.arguments)
    given[direct.value_at], given[direct.out_at] = value.data_ptr(), 4096
    assert tuple(given) == (*arguments[:6], 0, 0)
    assert (direct.function, direct.programs, direct.threads) == (2, 256, 256)
    assert direct.shared > 0
    # Of a byte: four groups of 16 KiB, the last of which is not full.
    single.prepare_statistics(-1, torch.int8, 50_001).run(64, 4096, 8192, 77)
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


def test_what_a_release_of_triton_adds_to_a_launch_is_left_to_it(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dumper.values.device_kernels import launching, single

    launch = single.prepare_fingerprint(-1, 1 << 20)
    direct = launch.direct(8192)
    assert direct is not None
    assert (direct.programs, direct.arguments[:4], direct.out_at) == (32, (0, 1 << 20, 8192, 8192 + 64 * 512), 4)
    compiled = launching.fingerprint_launcher(-1, False)._compiled
    for field, value in (("global_scratch_size", 128), ("num_ctas", 2), ("launch_pdl", True)):
        with monkeypatch.context() as patched:
            patched.setattr(compiled, "metadata", compiled.metadata._replace(**{field: value}))
            assert launch.direct(8192) is None, field
    with monkeypatch.context() as patched:
        narrow = compiled.asm["ptx"].replace(".u64 fingerprint_param_1", ".u32 fingerprint_param_1")
        assert narrow != compiled.asm["ptx"]
        patched.setitem(compiled.asm, "ptx", narrow)
        assert launch.direct(8192) is None
    with monkeypatch.context() as patched:
        patched.setattr(compiled, "asm", {})
        assert launch.direct(8192) is None


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ("", 0),
        (".param .b64 a", 1),
        (".param .u64 a, .param .u64 .ptr .align 1 b", 2),
        (".param .align 8 .b8 a[16]", None),
    ],
)
def test_parameters_of_kernels_are_counted(parameters: str, count: int | None) -> None:
    from dumper.values.device_kernels.launching import parameters_of_eight_bytes

    assert parameters_of_eight_bytes(f".visible .entry x(\n{parameters}\n)\n{{ ret; }}", "x") == count
    assert parameters_of_eight_bytes(f".visible .entry x(\n{parameters}\n)\n{{ ret; }}", "y") is None

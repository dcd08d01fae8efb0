"""Wheels that tests look into or import from, downloaded without dependencies: they are no part of the environment.

Those of SGLang's releases are what patch configs are checked against.
``python -m testbed.wheels 0.5.11 0.5.12`` downloads further ones; the tests then check them too.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed.paths import CACHE

WHEELS = CACHE / "wheels"
RELEASES = ("0.5.9", "0.5.10.post1", "0.5.13.post1", "0.5.17", "0.5.21", "0.5.23")
"""What the tests download: the ends of the supported range, and releases in which SGLang's layers look different."""
PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_34_x86_64", "--only-binary", ":all:")
"""The sources are the same in every wheel of a release, so any one will do, whatever runs the tests."""


TRANSFORMERS_RELEASES = ("5.20.0", "5.22.0", "5.24.0")
"""Of Transformers, beside the one that is installed: in 5.21 and 5.24 the models were changed."""
MEGATRON_RELEASES = ("0.13.1", "0.14.0", "0.15.0", "0.16.1")
"""Of Megatron-core: in 0.16 the layers and the MoE block were changed."""
MEGATRON = ("--only-binary", ":all:")


class WheelError(RuntimeError):
    """A wheel that could not be had."""


def sglang_wheel(release: str) -> Path:
    """The wheel of a release, downloaded if it is not in the cache. Raises WheelError."""
    return _wheel("sglang", release, PLATFORM)


def transformers_wheel(release: str) -> Path:
    """The wheel of a release of Transformers, downloaded if it is not in the cache. Raises WheelError."""
    return _wheel("transformers", release, ())


def megatron_wheel(release: str) -> Path:
    """The wheel of a release of Megatron-core, downloaded if it is not in the cache. Raises WheelError."""
    return _wheel("megatron-core", release, MEGATRON)


def megatron_sources() -> Path:
    """A folder for ``sys.path`` that holds the newest of ``MEGATRON_RELEASES``. Raises WheelError."""
    wheel = megatron_wheel(MEGATRON_RELEASES[-1])
    return _unpacked(wheel, WHEELS / wheel.stem, "")


def newest_wheel(package: str) -> Path:
    """The wheel of the newest release that the package index serves. Raises WheelError."""
    with tempfile.TemporaryDirectory() as folder:
        _download(package, MEGATRON if package == "megatron-core" else PLATFORM, Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        WHEELS.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, WHEELS / wheel.name))


def unpacked_wheel(package: str, release: str) -> Path:
    """A folder for ``sys.path`` that holds a package for this machine. Raises WheelError."""
    wheel = _wheel(package, release, ())
    return _unpacked(wheel, WHEELS / wheel.stem, "")


def sglang_sources(release: str) -> Path:
    """A folder for ``sys.path`` that holds the sources of a release of SGLang. Raises WheelError."""
    return _unpacked(sglang_wheel(release), WHEELS / f"sglang-{release}-sources", (".py", ".h", ".cuh"))


def _unpacked(wheel: Path, folder: Path, endings: str | tuple[str, ...]) -> Path:
    with _lock():
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=WHEELS) as temporary:
                whole = Path(temporary) / "whole"
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(whole, [name for name in archive.namelist() if name.endswith(endings)])
                whole.rename(folder)
    return folder


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One process at a time fills the cache."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    with (WHEELS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wheel(package: str, release: str, platform: Sequence[str]) -> Path:
    with _lock():
        cached = _cached(package, release)
        if cached is not None:
            return cached
        _download(f"{package}=={release}", platform, WHEELS)
        cached = _cached(package, release)
    if cached is None:
        raise WheelError(f"pip downloaded {package} {release}, but not as a wheel")
    return cached


def _download(wanted: str, platform: Sequence[str], folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*pip, *platform, "--dest", str(folder), wanted], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WheelError(
            f"{wanted} could not be downloaded from the package index; put its wheel into {WHEELS} or make "
            f"the index reachable for pip:\n{done.stderr.strip()[-1500:]}"
        )


def known_releases() -> tuple[str, ...]:
    """``RELEASES`` and what else lies in the cache, oldest first."""
    found = {path.name.split("-")[1] for path in WHEELS.glob("sglang-*.whl")}
    return tuple(sorted(found | set(RELEASES), key=_order))


def _cached(package: str, release: str) -> Path | None:
    return next(iter(WHEELS.glob(f"{package.replace('-', '_')}-{release}-*.whl")), None)


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.replace("post", "").split("."))


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(sglang_wheel(wanted))

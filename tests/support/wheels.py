"""Wheels of SGLang releases, downloaded without dependencies, to check patch configs against their sources.

``python -m tests.support.wheels 0.5.11 0.5.12`` downloads further ones; the tests then check them too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import CACHE

WHEELS = CACHE / "wheels"
RELEASES = ("0.5.9", "0.5.10.post1", "0.5.13.post1", "0.5.17", "0.5.21", "0.5.23")
"""What the tests download: the ends of the supported range, and releases in which SGLang's layers look different."""
PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_34_x86_64", "--only-binary", ":all:")
"""The sources are the same in every wheel of a release, so any one will do, whatever runs the tests."""


class WheelError(RuntimeError):
    """A wheel that could not be had."""


def sglang_wheel(release: str) -> Path:
    """The wheel of a release, downloaded if it is not in the cache. Raises WheelError."""
    cached = _cached(release)
    if cached is not None:
        return cached
    WHEELS.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, *PLATFORM, "--dest", str(WHEELS), f"sglang=={release}"], capture_output=True, text=True, check=False
    )
    cached = _cached(release)
    if done.returncode != 0 or cached is None:
        raise WheelError(
            f"sglang {release} could not be downloaded from the package index; put its wheel into {WHEELS} or make "
            f"the index reachable for pip:\n{done.stderr.strip()[-1500:]}"
        )
    return cached


def known_releases() -> tuple[str, ...]:
    """``RELEASES`` and what else lies in the cache, oldest first."""
    found = {path.name.split("-")[1] for path in WHEELS.glob("sglang-*.whl")}
    return tuple(sorted(found | set(RELEASES), key=_order))


def _cached(release: str) -> Path | None:
    return next(iter(WHEELS.glob(f"sglang-{release}-*.whl")), None)


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.replace("post", "").split("."))


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(sglang_wheel(wanted))

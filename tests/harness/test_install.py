"""requirements/install.sh: an environment is made anew when anything has changed that it was made from; and packages
hold the sources by which they know whether their modules are current."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from tensortap.compiled import HEADERS_ELSEWHERE, MODULES
from testbed.paths import CHECKOUT

INSTALL = "requirements/install.sh"
REQUIREMENTS = "requirements/dev.txt"
OPERATORS = "testbed/sglang_cpu/torchvision_operators.py"
PYTHON = """#!/bin/sh
case "$*" in
"-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
*get_path*) echo nowhere ;;
esac
"""
"""Says yes to everything, and makes environments that do."""


def c_sources() -> Iterator[str]:
    """What the compiled modules are built from."""
    for name in MODULES:
        folder = CHECKOUT.joinpath(*name.split(".")[:-1])
        for file in (*folder.glob("*.[ch]"), *(folder / header for header in HEADERS_ELSEWHERE.get(name, ()))):
            yield os.path.relpath(file, CHECKOUT)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that has what environments are made from, with a Python that installs nothing."""
    for file in (INSTALL, REQUIREMENTS, OPERATORS, "pyproject.toml", "setup.py", *c_sources()):
        copy = tmp_path / "checkout" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / file, copy)
    (tmp_path / "checkout/patcher").mkdir()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path / "checkout"


def installs(checkout: Path) -> bool:
    """Whether the script sets the environment up when it is called."""
    said = subprocess.run(
        [INSTALL, "environment", REQUIREMENTS],
        cwd=checkout,
        env={**os.environ, "PYTHON": str(checkout.parent / "python")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return said.startswith("Setting up environment")


def test_whatever_it_is_made_from(checkout: Path) -> None:
    assert installs(checkout)
    unnoticed = []
    for file in sorted({INSTALL, REQUIREMENTS, OPERATORS, "pyproject.toml", "setup.py", *c_sources()}):
        assert not installs(checkout), "nothing has changed"
        with (checkout / file).open("a") as source:
            source.write("\n")
        if not installs(checkout):
            unnoticed.append(file)
    assert not unnoticed, f"environments go stale when these change: {unnoticed}"


def test_a_source_that_moves(checkout: Path) -> None:
    assert installs(checkout)
    (checkout / "dumper/writing/framing/_xxh3.h").rename(checkout / "dumper/writing/framing/_xxh3_renamed.h")
    assert installs(checkout)


def test_packages_hold_the_c_sources() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    held = {
        str(file.relative_to(CHECKOUT))
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (CHECKOUT / package.replace(".", "/")).glob(pattern)
    }
    assert set(c_sources()) <= held

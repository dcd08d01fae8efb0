"""Shared by the tests of trust: a recording in this process, and programs in processes of their own."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dumper import open_run
from testbed.forked import TORCH, ForkHost, fork_host
from tests.dumper.recording.conftest import Recording

ROOT = Path(__file__).resolve().parents[2]
PREAMBLE = """
import os, signal, sys, threading, time
import numpy as np
from dumper import dumper
"""


@dataclass
class Outcome:
    """How a program ended, and the run that it left."""

    returncode: int
    out: str
    err: str
    path: Path

    def run(self) -> object:
        return open_run(self.path)


@dataclass
class Programs:
    """Runs programs with recording enabled, each in a process of its own: whatever they do hurts no other test."""

    folder: Path
    host: ForkHost

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def environment(self, **more: str) -> dict[str, str]:
        mine = {"TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": str(self.folder), "TENSORTAP_CONTROL": "0"}
        return {**os.environ, **mine, "PYTHONPATH": str(ROOT), **more}

    def __call__(self, code: str, *arguments: str, timeout: float = 120.0, **environment: str) -> Outcome:
        result = self.host.run(
            PREAMBLE + textwrap.dedent(code),
            *arguments,
            environment=self.environment(**environment),
            timeout=timeout,
        )
        return Outcome(result.returncode, result.stdout, result.stderr, self.path)


@pytest.fixture
def program(tmp_path: Path, light_host: ForkHost) -> Programs:
    return Programs(tmp_path, light_host)


@pytest.fixture(scope="session")
def torch_host() -> Iterator[ForkHost]:
    with fork_host(TORCH) as host:
        yield host


@pytest.fixture
def torch_program(tmp_path: Path, torch_host: ForkHost) -> Programs:
    return Programs(tmp_path, torch_host)


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path)
    yield made
    made.close()

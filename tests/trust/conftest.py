"""Shared by the tests of trust: a recording in this process, and programs in processes of their own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dumper import open_run
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

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def environment(self, **more: str) -> dict[str, str]:
        mine = {"TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": str(self.folder), "TENSORTAP_CONTROL": "0"}
        return {**os.environ, **mine, "PYTHONPATH": str(ROOT), **more}

    def __call__(self, code: str, *arguments: str, timeout: float = 120.0, **environment: str) -> Outcome:
        result = subprocess.run(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *arguments],
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(result.returncode, result.stdout, result.stderr, self.path)


@dataclass
class TorchPrograms(Programs):
    """The same, forked from a process that has imported torch, which is most of what such a program costs."""

    host: subprocess.Popen[str]

    def __call__(self, code: str, *arguments: str, timeout: float = 120.0, **environment: str) -> Outcome:
        out, err = self.folder / "out", self.folder / "err"
        request = {
            "code": PREAMBLE + textwrap.dedent(code),
            "arguments": arguments,
            "environment": self.environment(**environment),
            "out": str(out),
            "err": str(err),
        }
        assert self.host.stdin is not None
        assert self.host.stdout is not None
        self.host.stdin.write(json.dumps(request) + "\n")
        self.host.stdin.flush()
        if not select.select([self.host.stdout], [], [], timeout)[0]:
            os.killpg(self.host.pid, signal.SIGKILL)
        answer = self.host.stdout.readline()
        assert answer, (
            f"no end within {timeout:.0f} s, or of the process that forks; it said: {err.read_text()[-3000:]}"
        )
        return Outcome(int(answer), out.read_text(), err.read_text(), self.path)


@pytest.fixture
def program(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture(scope="module")
def torch_host() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.trust.torch_host"]
    host = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with host:
        yield host


@pytest.fixture
def torch_program(tmp_path: Path, torch_host: subprocess.Popen[str]) -> Programs:
    return TorchPrograms(tmp_path, torch_host)


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path)
    yield made
    made.close()

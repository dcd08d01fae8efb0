"""The fuzzer of the reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.streams import examples

ROOT = Path(__file__).resolve().parents[3]
RUNS = 10_000
"""Inputs. Of the code that 20,000 of them reached, these reach all but one part in a hundred."""


@pytest.mark.slow
def test_the_reader_withstands_a_fuzzer(tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    for number, data in enumerate(examples()):
        (folder / str(number)).write_bytes(data)
    # Through a shell that stays: a child begins with the largest memory that its parent ever had, and the fuzzer would
    # take that of pytest for its own.
    through_shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*through_shell, sys.executable, "-m", "tests.dumper.recording.fuzz_reader", str(folder)]
    limits = [
        f"-runs={RUNS}",
        "-timeout=60",
        "-rss_limit_mb=1024",
        "-max_len=4096",
        f"-artifact_prefix={tmp_path}/",
    ]
    result = subprocess.run([*command, *limits], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

"""The fuzzer of the reader, for a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dumper.format import frames
from tests.dumper.recording.conftest import Recording

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_reader_withstands_a_fuzzer(recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fuzzer knows no checksums, so the examples that it starts from have none.
    monkeypatch.setattr(frames, "checksum", lambda data: 0)
    examples = tmp_path / "examples"
    examples.mkdir()
    data = b""
    for kind, meta, payloads in (
        ("header", {"format": "tensortap", "version": 1, "rank": 0, "world_size": 2, "parallel": {"tp": [0, 2]}}, ()),
        ("taps", {"taps": [{"id": "a", "name": "b", "line": 3}]}, ()),
        ("step", {"step": 0, "layout": {"rows": 2, "sequences": [["r", 0, 2]], "forward_mode": "extend"}}, ()),
        ("record", {"name": "x", "dtype": "float32", "shape": [2], "step": 0, "tags": {"l": 1}}, (bytes(8),)),
        ("record", {"name": "y", "step": None}, (b"\x93\x01\x02\x03",)),
        ("record", {"name": "s", "dtype": "int8", "shape": [9], "level": "stats"}, (np.zeros(7).tobytes(),)),
    ):
        data += frames.encode_frame(kind, meta, len(data), payloads)
        (examples / str(len(data))).write_bytes(data)
    # Through a shell that stays: a child begins with the largest memory that its parent ever had, and the fuzzer would
    # take that of pytest for its own.
    through_shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    command = [*through_shell, sys.executable, "-m", "tests.dumper.recording.fuzz_reader", str(examples)]
    limits = [
        "-max_total_time=40",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-max_len=4096",
        f"-artifact_prefix={tmp_path}/",
    ]
    result = subprocess.run([*command, *limits], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

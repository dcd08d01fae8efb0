"""The real ForwardBatch of releases that cannot be served here, in a process of its own each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.paths import CHECKOUT, stand_in_environment
from testbed.wheels import sglang_sources

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("forked_releases.py")
RELEASES = ("0.5.9", "0.5.10.post1", "0.5.13.post1")


@pytest.fixture(scope="module")
def ended() -> dict[str, dict[str, str]]:
    """By release, what ``real_forward_batch.py`` printed, the error that ended it, and the package that it imported."""
    environment = {**os.environ, **stand_in_environment(), "SGLANG_USE_CPU_ENGINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(CHECKOUT)])
    sources = [str(sglang_sources(release)) for release in RELEASES]
    command = [sys.executable, str(PROGRAM), *sources]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"printed"')]
    return dict(zip(RELEASES, lines, strict=True))


@pytest.mark.parametrize("release", RELEASES)
def test_batches_that_the_release_itself_pads_and_puts_back(release: str, ended: dict[str, dict[str, str]]) -> None:
    assert ended[release]["error"] == ""
    assert Path(ended[release]["package"]) == sglang_sources(release) / "sglang"
    seen = json.loads(ended[release]["printed"].splitlines()[-1])
    assert seen["checked"] == 112
    assert seen["axes"] == {
        "tp": [2, 4],
        "pp": [0, 1],
        "attn_tp": [0, 2],
        "attn_dp": [1, 2],
        "attn_cp": [0, 1],
        "moe_ep": [0, 1],
        "moe_tp": [2, 4],
        "moe_dp": [0, 1],
    }

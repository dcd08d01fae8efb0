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

DRIVER = Path(__file__).with_name("real_forward_batch.py")


@pytest.mark.slow
@pytest.mark.parametrize("release", ["0.5.9", "0.5.10.post1", "0.5.13.post1"])
def test_batches_that_the_release_itself_pads_and_puts_back(release: str) -> None:
    sources = sglang_sources(release)
    environment = {**os.environ, **stand_in_environment(), "SGLANG_USE_CPU_ENGINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(sources), environment["PYTHONPATH"], str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, str(DRIVER)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
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

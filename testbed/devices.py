"""Which device tests and benchmarks run on."""

from __future__ import annotations

import glob
import os

ON_CPU = "TESTS_GPU_ON_CPU"
"""Set to 1, the tests for a device run on the CPU as far as they go: to try them where there is none."""


def why_no_gpu() -> str | None:
    """Why there is no CUDA device, in words; None where there is one. Imports nothing and starts no context."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES hides all CUDA devices"
    return None if glob.glob("/dev/nvidia[0-9]*") else "there is no CUDA device"

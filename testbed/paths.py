"""Where things are in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIGS = CHECKOUT / "configs"
CACHE = CHECKOUT / ".cache"
"""What is made once and kept between sessions: tiny models, downloaded wheels."""


def stand_in_environment(folder: str = "sglang_cpu") -> dict[str, str]:
    """Variables under which Python processes get what it takes to run SGLang (or vLLM: ``vllm_cpu``) without a GPU."""
    path = [str(Path(__file__).with_name(folder)), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}

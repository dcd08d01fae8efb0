"""The engines, by name. Each is imported when it is asked for: a table needs no torch."""

from __future__ import annotations

import importlib

from benchmarks.faults.engines.protocol import Engine

_MODULES = {
    "transformers": "benchmarks.faults.engines.huggingface.engine",
    "tensor_parallel": "benchmarks.faults.engines.tensor_parallel.engine",
    "sglang": "benchmarks.faults.engines.sglang.engine",
}
NAMES = tuple(_MODULES)


def engine(name: str) -> Engine:
    """Raises KeyError for an unknown name."""
    found: Engine = importlib.import_module(_MODULES[name]).ENGINE
    return found

"""The engines, by name. Each is imported when something is recorded: comparing recordings needs no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from benchmarks.faults.engines.protocol import Engine


@dataclass(frozen=True)
class Known:
    """What is known of an engine without importing it."""

    module: str
    folder: str
    """How the names of its folders begin. Engines that share one record variants of one model, which are to agree."""
    usual: str
    """The variant under which faults are recorded, where they do not say another."""
    other: str
    """A variant with other numerics that they are compared with too."""


KNOWN = {
    "transformers": Known(
        "benchmarks.faults.engines.huggingface.engine", "transformers", "plain", "eager-pieces2-fused-norm"
    ),
    "tensor_parallel": Known("benchmarks.faults.engines.tensor_parallel.engine", "gloo", "tp2", "split8-blocks"),
    "sglang": Known("benchmarks.faults.engines.sglang.engine", "servers", "tp2", "tp1"),
    "vllm": Known("benchmarks.faults.engines.vllm.engine", "servers", "vllm-tp1", "vllm-tp2"),
    "transformers_served": Known("benchmarks.faults.engines.huggingface.served", "servers", "hf", "hf-eager"),
}
NAMES = tuple(KNOWN)


def engine(name: str) -> Engine:
    """Raises KeyError for an unknown name."""
    found: Engine = importlib.import_module(KNOWN[name].module).ENGINE
    return found

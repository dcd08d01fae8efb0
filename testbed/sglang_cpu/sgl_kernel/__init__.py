"""Stand-in for SGLang's CPU kernels, which need AVX512 and are on no package index.

It registers no ``torch.ops.sgl_kernel``, so SGLang takes its native torch paths. What it imports by name from here
it gets, and calling it says what is missing; what speculative decoding needs is in ``speculative``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)
    if name.endswith("_cpu"):
        written = getattr(importlib.import_module(f"{__name__}.speculative"), name, None)
        if written is not None:
            return written  # type: ignore[no-any-return]

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} is not there: this is the stand-in of the CPU test servers")

    missing.__name__ = name
    return missing

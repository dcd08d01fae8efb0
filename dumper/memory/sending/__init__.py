"""How a slab of a CUDA device is sent to the host in one call, compiled where there is a compiler;
``CudaRuntime.send`` is its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.memory.sending import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

FUNCTIONS = ("StreamIsCapturing", "EventRecord", "StreamWaitEvent", "MemcpyAsync")
"""Of the runtime, in the order in which ``send`` takes their addresses."""
CAPTURED = 1
"""What ``send`` returns first while the stream is being captured; from 2 on, which of FUNCTIONS failed."""

send: Callable[..., tuple[int, int]] | None = None if _compiled is None else _compiled.send

__all__ = ["CAPTURED", "FUNCTIONS", "send"]

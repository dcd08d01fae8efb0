"""Gradients of recorded values: recorded when they arrive, under the step of their forward pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dumper.recording.recorder import Recorder


def record_gradient(
    recorder: Recorder,
    name: str,
    value: Any,
    dims: str | None,
    tags: Mapping[str, Any],
    tap: str | None,
    step: int,
) -> None:
    """Record the gradient of ``value`` in the stream ``grad`` as soon as the backward pass has computed it.

    Values that no gradient flows into (no tensor, or ``requires_grad`` is False) are left alone.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or not value.requires_grad:
        return

    def arrived(gradient: Any) -> None:
        recorder.submit(name, gradient, dims, tags, tap=tap, stream="grad", step=step)

    value.register_hook(arrived)

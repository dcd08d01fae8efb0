"""Record tensors and the token layout of every forward pass, per rank, and read such recordings."""

from __future__ import annotations

from dumper.recording.recorder import dumper

TYPE_CHECKING = False  # as in typing, whose import would cost every patched process two milliseconds
if TYPE_CHECKING:
    from typing import Any

    from dumper.reading.open import open_run
    from dumper.reading.protocol import Run

__all__ = ["Run", "dumper", "open_run"]

_READING = {"Run": "dumper.reading.protocol", "open_run": "dumper.reading.open"}


def __getattr__(name: str) -> Any:
    # Patched processes import this package to write; reading needs more.
    if name in _READING:
        from importlib import import_module

        return getattr(import_module(_READING[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

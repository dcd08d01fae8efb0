"""Record tensors and the token layout of every forward pass, per rank, and read such recordings."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import would cost every patched process two milliseconds
if TYPE_CHECKING:
    from typing import Any

    from dumper.reading.open import open_run
    from dumper.reading.protocol import Run
    from dumper.recording.recorder import dumper

__all__ = ["Run", "dumper", "open_run"]

_HOMES = {
    "Run": "dumper.reading.protocol",
    "dumper": "dumper.recording.recorder",
    "open_run": "dumper.reading.open",
}


def __getattr__(name: str) -> Any:
    # Patched processes import this package to write, other programs to read: each loads its half alone.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found

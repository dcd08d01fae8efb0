"""Record tensors and the token layout of every forward pass, per rank, and read such recordings."""

from __future__ import annotations

from dumper.recording.recorder import dumper

TYPE_CHECKING = False  # as in typing, whose import would cost every patched process two milliseconds
if TYPE_CHECKING:
    from typing import Any

    from dumper.reading.run import Run, open_run

__all__ = ["Run", "dumper", "open_run"]

_READING = frozenset({"Run", "open_run"})


def __getattr__(name: str) -> Any:
    # Patched processes import this package to write; reading needs more.
    if name in _READING:
        from dumper.reading import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Line two recorded runs up and say what differs, where it began and whether it matters.

import comparator
report = comparator.compare("runs/baseline", "runs/target", token_aligner="smart")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comparator.api import Report, assert_runs_match, compare
    from comparator.errors import ComparatorError
    from comparator.options import Options

__all__ = ["ComparatorError", "Options", "Report", "assert_runs_match", "compare"]

_HOMES = {
    "Report": "comparator.api",
    "assert_runs_match": "comparator.api",
    "compare": "comparator.api",
    "ComparatorError": "comparator.errors",
    "Options": "comparator.options",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: ``import comparator`` alone costs nothing."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)

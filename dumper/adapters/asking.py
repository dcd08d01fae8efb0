"""Questions to a framework that this release, or this moment, may have no answer to."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable
from typing import Any


def quietly(read: Callable[[], Any]) -> Any:
    """What ``read`` returns, None when it raises."""
    try:
        return read()
    except Exception:
        return None


def installed_versions(*distributions: str) -> dict[str, str]:
    """Distribution name to version, of those that are installed."""
    found = {}
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = importlib.metadata.version(distribution)
    return found

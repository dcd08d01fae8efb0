"""Puts code into a program's own source as it is imported, from a config file.

``patched``, ``apply`` and ``install`` are loaded when they are first used: every launched process imports this
package, and most of them need none of them.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import would cost every process some milliseconds
if TYPE_CHECKING:
    from typing import Any

    from patcher.errors import PatchError
    from patcher.load.live import Applied, apply, patched

__all__ = ["Applied", "PatchError", "apply", "patched"]


def __getattr__(name: str) -> Any:
    if name == "PatchError":
        from patcher.errors import PatchError

        return PatchError
    if name in ("Applied", "apply", "patched"):
        from patcher.load import live

        return getattr(live, name)
    raise AttributeError(f"module 'patcher' has no attribute {name!r}")

"""What a launched command has installed in the end, in all its processes together."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from patcher.load.process_plan import Activation


def report_installed(activation: Activation, file: str) -> None:
    """Say how many taps the processes of a command have installed, unless it is all of them.

    ``file`` holds a module a line, and is removed.
    """
    try:
        with open(file, encoding="utf-8") as noted:
            installed = set(noted.read().split("\n"))
    except OSError:
        installed = set()
    with contextlib.suppress(OSError):
        os.unlink(file)
    missing = [name for name in activation.digests if name not in installed]
    if not missing:
        return
    total = sum(activation.taps.values())
    there = sum(count for name, count in activation.taps.items() if name in installed)
    activation.report(
        f"{there} of {total} taps were installed; no process of the command imported {', '.join(missing)}"
    )

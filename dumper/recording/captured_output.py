"""What ``capture_output`` gives: records in memory as SGLang's dumper has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from dumper.recording.capture import CapturedRecord
from dumper.recording.short_way import checkpoint_is_running
from dumper.rules.expressions import Expression
from dumper.settings import Settings

GRADIENT = "grad__"
"""Before the names of gradients, as in SGLang's dumps."""


def _recompute_status() -> str:
    """Whether the value that comes now is computed inside activation checkpointing, and there a second time."""
    if not checkpoint_is_running():
        return "disabled"
    backward = getattr(sys.modules.get("torch"), "_C", None)
    return "original" if backward is None or backward._current_graph_task_id() == -1 else "recompute"


class CapturedOutput(dict[str, Any]):
    """``{name: {"value": …, "meta": {…}}}``."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        """``settings``: those in force decide what is kept."""
        super().__init__()
        self._settings = settings

    def append(self, record: CapturedRecord) -> None:
        """Keep a record where recording is on and the filter lets it through."""
        settings = self._settings()
        status = _recompute_status() if record.stream == "value" else "disabled"
        known = {**record.tags, "name": record.name, "step": record.step, "recompute_status": status}
        if not settings.enable or (settings.filter and not Expression(settings.filter).holds(known)):
            return
        name = record.name if record.stream == "value" else f"{GRADIENT}{record.name}"
        meta = {**known, "name": name}
        if record.dims is not None:
            meta["dims"] = record.dims
        self[name] = {"value": record.value, "meta": meta}

"""What ``capture_output`` gives: records in memory as SGLang's dumper has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dumper.recording.capture import CapturedRecord
from dumper.rules.expressions import Expression
from dumper.settings import Settings

GRADIENT = "grad__"
"""Before the names of gradients, as in SGLang's dumps."""


class CapturedOutput(dict[str, Any]):
    """``{name: {"value": …, "meta": {…}}}``."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        """``settings``: those in force decide what is kept."""
        super().__init__()
        self._settings = settings

    def append(self, record: CapturedRecord) -> None:
        """Keep a record where recording is on and the filter lets it through."""
        settings = self._settings()
        known = {**record.tags, "name": record.name, "step": record.step}
        if not settings.enable or (settings.filter and not Expression(settings.filter).holds(known)):
            return
        name = record.name if record.stream == "value" else f"{GRADIENT}{record.name}"
        meta = {**known, "name": name}
        if record.dims is not None:
            meta["dims"] = record.dims
        self[name] = {"value": record.value, "meta": meta}

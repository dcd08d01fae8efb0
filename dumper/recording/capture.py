"""Records in memory instead of on disk, for tests and notebooks."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class CapturedRecord:
    """One value, copied at the time of the call; tensors stay on their device."""

    name: str
    value: Any
    step: int
    tags: Mapping[str, Any]
    dims: str | None
    stream: str
    """``value`` or ``grad``."""


def captured(
    name: str, value: Any, dims: str | None, tags: Mapping[str, Any], stream: str, step: int
) -> CapturedRecord:
    """Copy a value; tensors are detached."""
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and isinstance(value, torch.Tensor)
    kept = value.detach().clone() if is_tensor else copy.deepcopy(value)
    return CapturedRecord(name, kept, step, dict(tags), dims, stream)


class Capture:
    """A ``with`` block whose records go into a list."""

    def __init__(
        self, begin: Callable[[list[CapturedRecord]], None], end: Callable[[list[CapturedRecord]], None]
    ) -> None:
        self._begin = begin
        self._end = end
        self._records: list[CapturedRecord] = []

    def __enter__(self) -> list[CapturedRecord]:
        self._begin(self._records)
        return self._records

    def __exit__(self, *exception: object) -> None:
        self._end(self._records)

"""Record only when it matters: hold the last steps in memory until a value is NaN or infinite, then write."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


@dataclass
class _KeptStep(Generic[Item]):
    step: int | None
    items: list[Item] = field(default_factory=list)
    nbytes: int = 0


class NanTrigger(Generic[Item]):
    """Between the staged records and the file. Not thread-safe: it belongs to the writer thread.

    Until the first NaN or infinity the items of the last ``keep_steps`` complete steps and of the step under way
    are held, at most ``budget_bytes`` of them (the oldest step goes first, though never the one under way).
    From then on everything passes.
    """

    def __init__(self, keep_steps: int, budget_bytes: int) -> None:
        if keep_steps < 0:
            raise ValueError(f"on_nan keeps a number of steps, 0 or more, not {keep_steps}")
        self._keep_steps = keep_steps
        self._budget_bytes = budget_bytes
        self._kept: deque[_KeptStep[Item]] = deque()
        self._held_bytes = 0
        self.fired = False
        self.fired_at_step: int | None = None

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def offer(self, step: int | None, item: Item, nbytes: int, array: npt.NDArray[Any] | None) -> list[Item]:
        """The items to write now, oldest first; empty while nothing has happened.

        ``array`` is the value on the host, None for an item that is no tensor and cannot fire.
        """
        if self.fired:
            return [item]
        self._hold(step, item, nbytes)
        if array is not None and has_nonfinite(array):
            return self.fire(step)
        self._forget()
        return []

    def fire(self, step: int | None) -> list[Item]:
        """Start to write, also when another rank saw it: returns what was held, oldest first."""
        if self.fired:
            return []
        self.fired, self.fired_at_step = True, step
        items = [item for kept in self._kept for item in kept.items]
        self._kept.clear()
        self._held_bytes = 0
        return items

    def _hold(self, step: int | None, item: Item, nbytes: int) -> None:
        if not self._kept or self._kept[-1].step != step:
            self._kept.append(_KeptStep(step))
        kept = self._kept[-1]
        kept.items.append(item)
        kept.nbytes += nbytes
        self._held_bytes += nbytes

    def _forget(self) -> None:
        while len(self._kept) > self._keep_steps + 1 or (self._held_bytes > self._budget_bytes and len(self._kept) > 1):
            self._held_bytes -= self._kept.popleft().nbytes


def has_nonfinite(array: npt.NDArray[Any]) -> bool:
    """Whether a floating-point or complex array (bf16 and fp8 of ``ml_dtypes`` too) holds a NaN or an infinity."""
    if array.dtype.kind in "biuSUO?":
        return False
    try:
        return not bool(np.isfinite(array).all())
    except TypeError:
        # fp8 types without infinities have no isfinite of their own.
        return not bool(np.isfinite(array.astype(np.float32)).all())

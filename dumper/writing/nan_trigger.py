"""Record only when it matters: hold the last steps in memory until a value is NaN or infinite, then write."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from dumper.format import json_files
from dumper.format.regular_files import folder_mode_within, make_folders
from dumper.format.run_files import control_folder
from dumper.log_once import log

_LOOK_SECONDS = 0.1

Item = TypeVar("Item")


class NanSignal:
    """Tells the other ranks of a run that one has seen a NaN: the file ``control/nan.json``.

    What lay there before this process began is of an earlier one.
    """

    def __init__(self, run: Path) -> None:
        self._path = control_folder(run) / "nan.json"
        self._before = json_files.read(self._path)
        self._look_at = 0.0

    def give(self, step: int | None) -> None:
        """This rank has seen one. Never raises."""
        try:
            make_folders(self._path.parent, folder_mode_within(self._path.parent.parent))
            json_files.write(self._path, {"step": step, "time": time.time()})
        except OSError as error:
            log().warning("tensortap: the other ranks do not learn of the NaN: %s", error)

    def given(self) -> bool:
        """Whether another rank has; looks at most ten times a second."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_SECONDS
        content = json_files.read(self._path)
        return content is not None and content != self._before


@dataclass
class _KeptStep(Generic[Item]):
    step: int | None
    items: list[Item] = field(default_factory=list)
    nbytes: int = 0


class NanTrigger(Generic[Item]):
    """Between the staged records and the file. Not thread-safe: it belongs to the writer thread.

    Until the first NaN or infinity the items of the last ``keep_steps`` complete steps and of the step under way
    are held, at most ``budget_bytes`` of them (the oldest step goes first, though never the one under way).
    From then on everything passes. With a ``signal``, the first rank of a run that sees one sets off all ranks.
    """

    def __init__(self, keep_steps: int, budget_bytes: int, signal: NanSignal | None = None) -> None:
        if keep_steps < 0:
            raise ValueError(f"on_nan keeps a number of steps, 0 or more, not {keep_steps}")
        self._keep_steps = keep_steps
        self._budget_bytes = budget_bytes
        self._signal = signal
        self._kept: deque[_KeptStep[Item]] = deque()
        self._held_bytes = 0
        self.fired = False

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def offer(self, step: int | None, item: Item, nbytes: int, *, nonfinite: bool = False) -> list[Item]:
        """The items to write now, oldest first; empty while nothing has happened.

        ``nonfinite``: whether the item is a value that holds a NaN or an infinity.
        """
        if self.fired:
            return [item]
        self._hold(step, item, nbytes)
        self._forget()
        if nonfinite:
            return self.see(step)
        if self._signal is not None and self._signal.given():
            return self.fire()
        return []

    def see(self, step: int | None) -> list[Item]:
        """This rank has seen a NaN or an infinity: tell the others, and start to write as ``fire`` does."""
        if self._signal is not None and not self.fired:
            self._signal.give(step)
        return self.fire()

    def fire(self) -> list[Item]:
        """Start to write, also when another rank saw it: returns what was held, oldest first."""
        if self.fired:
            return []
        self.fired = True
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

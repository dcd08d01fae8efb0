"""What ``on_nan`` holds back: steps and values wait in memory until one of them holds a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dumper.control.on_nan import NanSignal, NanTrigger, has_nonfinite
from dumper.format.dtypes import as_array
from dumper.measures import is_nonfinite, named_statistics
from dumper.settings import Settings
from dumper.writing.items import BeginStep, Description, Item, SmallValue, Submission, Watched

Lose = Callable[[int, str, str], None]


class Holding:
    """Between the queue and the file. Belongs to the writer's thread."""

    def __init__(self, settings: Settings, lose: Lose) -> None:
        """``lose`` counts values that are lost: how many, the count's name, what to say."""
        self._lose = lose
        signal = NanSignal(settings.run_path)
        self._trigger: NanTrigger[Item] = NanTrigger(settings.on_nan or 0, settings.memory_budget // 2, signal)
        self.held_back = 0
        """Values that were not written, which is no loss: those that wait, and those that were let go of."""

    def release(self, batch: Sequence[Item]) -> list[Item]:
        """The items to write now, those that waited included."""
        released = [ready for item in batch for ready in self._pass(item)]
        self.held_back += _count_values(batch) - _count_values(released)
        return released

    def _pass(self, item: Item) -> list[Item]:
        if isinstance(item, Watched):
            data = self._bytes_of(item.data, "a value")
            return self._trigger.see(item.step) if data is not None and _counts_nonfinite(data) else []
        if self._trigger.fired:
            return [item]
        if isinstance(item, BeginStep):
            return self._trigger.offer(item.number, item, 0)
        if isinstance(item, tuple | Submission):
            return self._hold(item)
        return [item]

    def _hold(self, item: SmallValue | Submission) -> list[Item]:
        if isinstance(item, tuple):
            description, slab, offset, nbytes, step = item
            data: bytes | None = bytes(slab.view[offset : offset + nbytes])
        else:
            description, step = item.description, item.step
            data = self._bytes_of(item.data, description.name)
        if data is None:
            return []
        waiting = Submission(description, data, step, 0)
        return self._trigger.offer(step, waiting, len(data), nonfinite=_is_nonfinite(description, data))

    def _bytes_of(self, data: object, name: str) -> bytes | None:
        """What a value holds, apart from buffers that are to be used again; None where it is lost."""
        if isinstance(data, bytes | memoryview):
            return bytes(data)
        copy: Any = data
        try:
            return bytes(copy.wait())
        except Exception as error:
            self._lose(1, "lost_encoding", f"{name}: the copy failed: {error}")
            return None
        finally:
            copy.release()


def _is_nonfinite(description: Description, data: bytes) -> bool:
    if description.dtype is None or description.shape is None:
        return False
    if description.level.kind == "stats":
        return _counts_nonfinite(data)
    shape = description.shape if description.level.kind != "sample" else (-1,)
    return has_nonfinite(as_array(data, description.dtype, shape))


def _counts_nonfinite(statistics: bytes) -> bool:
    return is_nonfinite(named_statistics(np.frombuffer(statistics, dtype="<f8").tolist()))


def _count_values(items: Sequence[Item]) -> int:
    return sum(isinstance(item, tuple | Submission) for item in items)

"""What ``on_nan`` holds back: steps and values wait in memory until one of them holds a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dumper.memory.staging import Staged
from dumper.settings import Settings
from dumper.values.dtypes import as_array
from dumper.values.measures import decode_statistics, is_nonfinite
from dumper.writing.items import BeginStep, Description, Item, ManyValues, SmallValue, Submission, Watched, count_values
from dumper.writing.nan_trigger import NanSignal, NanTrigger, has_nonfinite

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
        released = [ready for item in batch for one in _each(item) for ready in self._pass(one)]
        self.held_back += count_values(batch) - count_values(released)
        return released

    def _pass(self, item: Item) -> list[Item]:
        if isinstance(item, Watched):
            return self._look_at(item)
        if self._trigger.fired:
            return [item]
        if isinstance(item, BeginStep):
            return self._trigger.offer(item.number, item, 0)
        if isinstance(item, tuple | Submission):
            return self._hold(item)
        if isinstance(item, ManyValues):
            return self._hold_many(item)
        return [item]

    def _look_at(self, watched: Watched) -> list[Item]:
        try:
            statistics = _bytes_of(watched.data)
        except Exception as error:
            self._lose(0, "lost_encoding", f"a value could not be looked at for NaN: {error}")
            return []
        return self._trigger.see(watched.step) if is_nonfinite(decode_statistics(statistics)) else []

    def _hold(self, item: SmallValue | Submission) -> list[Item]:
        description, step = (item[0], item[4]) if isinstance(item, tuple) else (item.description, item.step)
        try:
            data = _bytes_in_slab(item) if isinstance(item, tuple) else _bytes_of(item.data)
        except Exception as error:
            self._lose(1, "lost_encoding", f"{description.source.name}: the copy failed: {error}")
            self.held_back -= 1
            return []
        return self._offer(description, data, step)

    def _hold_many(self, item: ManyValues) -> list[Item]:
        try:
            data = _bytes_of(item.data)
        except Exception as error:
            self._lose(len(item.values), "lost_encoding", f"a copy of {len(item.values)} values failed: {error}")
            self.held_back -= len(item.values)
            return []
        return [
            ready
            for description, offset, nbytes in item.values
            for ready in self._offer(description, data[offset : offset + nbytes], item.step)
        ]

    def _offer(self, description: Description, data: bytes, step: int | None) -> list[Item]:
        waiting = Submission(description, data, step, 0)
        return self._trigger.offer(step, waiting, len(data), nonfinite=_is_nonfinite(description, data))


def _each(item: Item) -> Sequence[Item]:
    return item if isinstance(item, list) else (item,)


def _bytes_in_slab(value: SmallValue) -> bytes:
    _, slab, offset, nbytes, _ = value
    return bytes(slab.view[offset : offset + nbytes])


def _bytes_of(data: bytes | memoryview | Staged) -> bytes:
    """A value apart from buffers that are to be used again. Raises what its copy raised."""
    if isinstance(data, bytes | memoryview):
        return bytes(data)
    try:
        return bytes(data.wait())
    finally:
        data.release()


def _is_nonfinite(description: Description, data: bytes) -> bool:
    if description.dtype is None or description.shape is None:
        return False
    if description.level.kind == "stats":
        return is_nonfinite(decode_statistics(data))
    shape = description.shape if description.level.kind != "sample" else (-1,)
    return has_nonfinite(as_array(data, description.dtype, shape))

"""Large arrays, a part of the rows after the other: each comes from memory once, for all that is done with it, and
several threads share the parts. What is found does not depend on how many they are."""

from __future__ import annotations

import _thread
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.measure.kernel.sums import Array, ChannelPart, Float, RowTable
from tensortap.lost_pages import watching

Before = Callable[[int], None]
"""Called with the number of elements, from the first on, that are looked at next."""
After = Callable[[int, int], None]
"""Called with the first element and the one behind the last that were looked at, of a part that is hardly looked at
again, by any thread."""
TOGETHER = 32
"""Rows whose channels the compiled kernel adds in float32; parts are multiples of so many."""
LINE = 11
"""Numbers that the kernel keeps of each row until it is added to those before."""
OUTLIER = 4.0
"""Energy of a channel over the usual one, from which rows are weighed anew (``comparator.diagnosis``) and sums of
channels that were taken without that are of no use."""
MOST_CHANNELS = 1 << 14
"""With more of them rows that are summed together leave the cache, and the sums of all parts take much memory."""
DIGESTED, BLOCK = 1024, 512
"""Elements of bfloat16: rows of a multiple of so many have digests, which are made of blocks of so many."""
_LANES = 8


class Pass(Protocol):
    """What sums up rows."""

    def add(
        self,
        baseline: Array,
        target: Array,
        rows: Float | None,
        energy: Float | None,
        *,
        leaves_out: bool = True,
        lines: Float | None = None,
        channels: Float | None = None,
        taken: npt.NDArray[np.uint8] | None = None,
        digests: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        """Add rows. ``leaves_out``: energies of what is the same may be left out; the first of them is then NaN.
        ``digests``, of shape ``(blocks, 2, 8)``, take what each block of both sides adds to ``Digests``."""

    def join(self, other: Any, lines: Float) -> None:
        """Add what another pass has found of the next rows."""


def _room(*shapes: tuple[int, ...]) -> Iterator[Float]:
    """Room for arrays, each of which begins with a line of the processor's cache, which the kernel fills with every
    vector. It is one piece of memory: to get that from the system and to give it back takes long, and the C library
    keeps as much for later as was let go at once."""
    sizes = [-(-math.prod(shape) // _LANES) * _LANES for shape in shapes]
    memory = np.empty(sum(sizes) + _LANES)
    address, _ = memory.__array_interface__["data"]
    first = -(address // memory.itemsize) % _LANES
    for shape, size in zip(shapes, sizes, strict=True):
        yield memory[first : first + math.prod(shape)].reshape(shape)
        first += size


class Digests(Protocol):
    """XXH3-64 of both sides of bfloat16."""

    def add(self, found: npt.NDArray[np.uint64], blocks: int) -> None:
        """Add what was found of the next blocks. The last block of all is not added: it is looked at in the end."""


class _Part(Struct, frozen=True, eq=False):
    """What is found of some rows."""

    sums: Pass
    lines: Float
    energy: Float | None
    channels: Float | None
    taken: npt.NDArray[np.uint8] | None
    blocks: npt.NDArray[np.uint64] | None
    """What the blocks of both sides add to digests."""

    @property
    def is_alike(self) -> bool:
        return self.energy is not None and math.isnan(self.energy[0])


class Parts:
    """Both sides of a pair, vectors of rows of ``length``, as parts of at most ``nbytes`` of one side."""

    def __init__(
        self, begin: Callable[[], Pass], sides: tuple[Array, Array], length: int, table: RowTable | None, nbytes: int
    ) -> None:
        self._begin, self._sides, self._length, self._table = begin, sides, length, table
        size, width = sides[0].size, max(side.itemsize for side in sides)
        self._step = max(1, nbytes // (TOGETHER * length * width)) * TOGETHER * length
        self._stops = [min(first + self._step, size) for first in range(0, size, self._step)]
        self._found: dict[int, _Part] = {}
        self._has_outliers = False
        self._has_energies = table is not None and table.energy is not None
        names = {side.dtype.name for side in sides}
        self._has_channels = self._has_energies and names == {"bfloat16"} and length <= MOST_CHANNELS
        self._taken = np.zeros(-(-size // length), np.uint8)
        self._digests: Digests | None = None
        self._after: After | None = None
        self._lock = threading.Lock()
        self._next = 0
        """The part that is joined next."""

    @property
    def can_be_digested(self) -> bool:
        """Whether the kernel can take digests of both sides beside their sums."""
        return self._has_channels and self._length % DIGESTED == 0

    def measure(
        self,
        whole: Pass,
        before: Sequence[Before],
        threads: int,
        digests: Digests | None = None,
        after: After | None = None,
    ) -> None:
        """Add all parts to a pass; the table of rows is filled. Each of ``before`` is called by one thread alone.
        ``digests`` take all but the last block of both sides."""
        self._digests, self._after = digests, after
        self._make_room(threads)
        self._share_out(range(len(self._stops)), before, threads, whole)
        alike = [number for number, part in self._found.items() if part.is_alike]
        if 0 < len(alike) < len(self._found):
            self._share_out(alike, (), threads, None)
        if self._table is not None and self._table.energy is not None and self._energies is not None:
            np.add.reduce(self._energies, axis=0, out=self._table.energy)

    def _make_room(self, threads: int) -> None:
        rows, count, padded = len(self._taken), len(self._stops), -(-self._length // _LANES)
        of_channels = count if self._has_channels else 0
        # For each thread and for some that wait to be joined; what is not needed is not got from the system.
        blocks = 0 if self._digests is None else min(count, threads + 2)
        self._lines, energies, channels, *rooms = _room(
            (rows, LINE),
            (count if self._has_energies else 0, self._length),
            (of_channels, padded, 4, _LANES),
            *[self._shape_of_blocks] * blocks,
        )
        self._energies = energies if self._has_energies else None
        self._channels = channels if self._has_channels else None
        self._room = [room.view(np.uint64) for room in rooms]

    @property
    def _shape_of_blocks(self) -> tuple[int, int, int]:
        """Of the room for what the blocks of a part add to digests, of one as long as parts are."""
        return min(self._step, self._sides[0].size) // BLOCK, 2, _LANES

    def channels(self) -> tuple[ChannelPart, ...]:
        """Sums of the channels over parts of the rows, where they are of use."""
        if self._has_outliers:
            return ()
        found = []
        for number in range(len(self._stops)):
            part = self._found[number]
            if part.channels is not None and part.taken is not None and part.taken.any() and not part.is_alike:
                found.append(ChannelPart(self._place(number)[1], part.channels, part.taken.view(np.bool_)))
        return tuple(found)

    def _place(self, number: int) -> tuple[slice, slice]:
        """The elements of a part, and its rows."""
        first, stop = number * self._step, self._stops[number]
        return slice(first, stop), slice(first // self._length, -(-stop // self._length))

    def _look(self, number: int, whole: Pass | None) -> None:
        """Look at a part, and add it to ``whole``; without it once more, for the energies that were left out."""
        elements, rows = self._place(number)
        channels = None if self._channels is None or self._has_outliers else self._channels[number]
        part = _Part(
            self._begin(),
            self._lines[rows],
            None if self._energies is None else self._energies[number],
            channels,
            None if channels is None else self._taken[rows],
            None if self._digests is None or whole is None else self._blocks(elements.stop - elements.start),
        )
        # Here, so that they are in the cache of whoever adds to them.
        for sums in (part.energy, part.channels):
            if sums is not None:
                sums.fill(0)
        baseline, target = self._sides
        part.sums.add(
            baseline[elements],
            target[elements],
            None if self._table is None else self._table.columns[rows],
            part.energy,
            leaves_out=whole is not None,
            lines=part.lines,
            channels=part.channels,
            taken=part.taken,
            digests=part.blocks,
        )
        if number == 0 and part.energy is not None and not part.is_alike:
            # The usual one is below so much where more than half are, which needs no order.
            below = np.count_nonzero(OUTLIER * part.energy < part.energy.max())
            self._has_outliers = bool(below > len(part.energy) // 2)
        if self._after is not None and not self._has_outliers:  # else rows are weighed anew
            self._after(elements.start, elements.stop)
        self._join(number, part, whole)

    def _blocks(self, elements: int) -> npt.NDArray[np.uint64]:
        """Room for what the blocks of a part add to digests: of one that was joined."""
        with self._lock:
            room = self._room.pop() if self._room else np.empty(self._shape_of_blocks, np.uint64)
        return room[: elements // BLOCK]

    def _join(self, number: int, part: _Part, whole: Pass | None) -> None:
        """Add to ``whole`` and to the digests what was found of a part, as soon as all before it are there."""
        with self._lock:
            self._found[number] = part
            while whole is not None and (following := self._found.get(self._next)) is not None:
                whole.join(following.sums, following.lines)
                self._next += 1
                if self._digests is not None and following.blocks is not None:
                    is_last = self._next == len(self._stops)
                    self._digests.add(following.blocks, len(following.blocks) - is_last)
                    if not is_last:
                        self._room.append(following.blocks)

    def _share_out(self, numbers: Sequence[int], before: Sequence[Before], threads: int, whole: Pass | None) -> None:
        """Look at parts in several threads, this one among them. Each has some of ``before``, which it calls for one
        part after the other; a part is looked at when it was called for that, by whoever comes first."""
        threads = max(1, min(threads, len(numbers)))
        lock, failed, next_at = threading.Lock(), list[BaseException](), 0

        def claim(at: int) -> int | None:
            nonlocal next_at
            with lock:
                if failed or next_at > at or next_at >= len(numbers):
                    return None
                next_at += 1
                return next_at - 1

        def work(calls: Sequence[Before]) -> None:
            try:
                for at, number in enumerate(numbers) if calls else ():
                    for call in calls:
                        call(self._stops[number])
                    mine = claim(at)
                    if mine is not None:
                        self._look(numbers[mine], whole)
                while (mine := claim(len(numbers))) is not None:
                    self._look(numbers[mine], whole)
            except BaseException as error:
                failed.append(error)

        def work_beside(calls: Sequence[Before]) -> None:
            with watching():
                work(calls)

        calls, others = list(before[::threads]), []
        for at in range(1, threads):
            beside = before[at::threads]
            try:
                others.append(_Beside(functools.partial(work_beside, beside)))
            except RuntimeError:  # there may be no more threads: this one does what it would have done
                calls.extend(beside)
        work(calls)
        for other in others:
            other.join()
        if failed:
            raise failed[0]


class _Beside:
    """A thread that does something, which raises nothing. It begins while this one goes on: ``threading.Thread.start``
    waits until the other runs, which takes a tenth of the time that a part takes."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._ends = threading.Lock()
        self._ends.acquire()
        self._work = work
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ends.release()

    def join(self) -> None:
        """Wait for its end."""
        self._ends.acquire()

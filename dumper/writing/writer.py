"""The writer thread: takes items off a queue and gives them, in batches, to the encoder of the rank's file."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from dumper.log_once import log
from dumper.memory.buffers import SLAB_BYTES, Shelf, Slab
from dumper.memory.device_slabs import DeviceSlab, SlabPiece
from dumper.settings import Settings
from dumper.writing.framing import take_values
from dumper.writing.items import (
    Barrier,
    BeginStep,
    Description,
    Item,
    ManyValues,
    StagedLayout,
    Stop,
    Submission,
    count_values,
)
from dumper.writing.rank_stream import RankStream

OVERHEAD_BYTES = 256
"""What a record costs in memory beside its value, roughly."""
IDLE_WAIT = 0.05
"""Seconds after which a sleeping writer looks again, should a wake-up have been missed."""
NAP = 0.003
"""Seconds between two batches of small records in the memory of the host, which the caches still have. While the model
records, the writer so takes the interpreter lock a few hundred times a second and not for every record, and the model
need not wake it; a value is in memory for no longer than this, and the time that it takes to write, before the file has
it."""
LONG_NAP = 0.05
"""The same after small values of a device, which are sent to the host at the end of one nap and written after the next,
and after steps of which no value was recorded: each time the writer takes the interpreter lock several times, for each
of which the model may have to wait for some hundred microseconds."""
MUCH, SHORTENED = 4 << 20, 0.4
"""Bytes in a round, after which the next comes sooner, in so much of the time: less is on its way, and in the way."""
MOST_WAITS = 250
"""Naps, some seconds in all, after which the writer waits for a value, and learns whether the device has failed."""
NAPS = 5
"""Naps without work before the writer sleeps until it is woken."""
IDLE_ROUNDS = 600
"""Waits of a sleeping writer, half a minute in all, after which free buffers go back to the operating system."""
LARGEST_BATCH = 1024
"""Items per round: memory is given back and the status brought up to date between rounds."""
SLABS_PREPARED = 6
"""Slabs that are ready when the first values come."""
LARGEST_BATCH_BYTES = 16 << 20
"""Bytes per round, so that memory comes back to a model that waits for room."""


class Wake:
    """What a ``threading.Event`` does for one thread that waits, in one turn of the interpreter lock where that takes
    several; and a signal's handler may come while its thread is within ``set``."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Free when the thread is to wake."""
        self._lock.acquire()

    def set(self) -> None:
        """Have ``wait`` return, the next time if not now."""
        with contextlib.suppress(RuntimeError):  # it is free already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Sleep for so long, or until somebody calls ``set``."""
        self._lock.acquire(timeout=seconds)


class Batch:
    """What one round takes off the queue."""

    __slots__ = ("barriers", "before_slab", "items", "reserved", "slabs", "stops")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.slabs: dict[Slab | DeviceSlab, int] = {}
        """How many values of each."""
        self.reserved = 0
        """Bytes of the memory budget to give back."""
        self.barriers: list[Barrier] = []
        self.stops = False
        """Whether it is the last."""
        self.before_slab = False
        """Whether what comes next is in a slab that is on its way from a device, or only now was sent."""


class Writer:
    """Owns the thread and the memory budget of one process. ``put`` may be called from any thread."""

    # Compiled code reads them where they lie (dumper/recording/shortcut).
    __slots__ = (
        "_asleep",
        "_budget",
        "_drops",
        "_encoder",
        "_lock",
        "_nap",
        "_queue",
        "_reserved",
        "_room",
        "_shelf",
        "_slab",
        "_thread",
        "_waiting",
        "_wake",
    )

    def __init__(self, settings: Settings, encoder: RankStream, shelf: Shelf[Any]) -> None:
        self._encoder = encoder
        self._shelf = shelf
        self._slab = Slab(shelf.take(SLAB_BYTES))
        self._budget = settings.memory_budget
        self._drops = settings.when_full == "drop"
        self._queue: deque[Item] = deque()
        self._wake = Wake()
        self._asleep = False
        # A plain lock: a condition is entered through Python code, and this happens for every record.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._reserved = 0
        self._waiting: deque[None] = deque()
        """As long as there are threads that wait for what was handed over to be written, or for room. No number, which
        could be changed under a lock alone, and a signal's handler may come here while its thread has the lock."""
        self._nap = NAP
        self._thread = threading.Thread(target=self._work, name="tensortap-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over; never blocks."""
        self._queue.append(item)
        if self._asleep:
            self._wake.set()

    def put_now(self, item: Item) -> None:
        """Hand over something that is not to wait for the end of a nap."""
        self._queue.append(item)
        self._wake.set()

    def can_hold(self, nbytes: int) -> bool:
        """Whether the whole budget is as large."""
        return nbytes <= self._budget

    def reserve(self, nbytes: int) -> bool:
        """Make room for a value in the memory budget; False when it is to be dropped.

        A value larger than the whole budget passes when nothing else is waiting. Waits when the policy says so.
        """
        with self._lock:
            return self._reserve(nbytes)

    def _reserve(self, nbytes: int) -> bool:
        if self._reserved + nbytes <= self._budget or self._reserved == 0:
            self._reserved += nbytes
            return True
        if self._drops:
            return False
        self._waiting.append(None)
        try:
            while self._reserved and self._reserved + nbytes > self._budget:
                if not self._thread.is_alive():
                    return False
                self._wake.set()
                self._room.wait(IDLE_WAIT)
        finally:
            self._waiting.pop()
        self._reserved += nbytes
        return True

    def put_small(
        self,
        description: Description,
        nbytes: int,
        step: int | None,
        fill: Callable[..., None],
        *arguments: object,
    ) -> bool:
        """Hand over ``nbytes`` (at most a slab) that ``fill(address, *arguments)`` writes; False if they are dropped.

        Reserving, copying and handing over in one: this is what a small record costs the model.
        """
        reserved = nbytes + OVERHEAD_BYTES
        with self._lock:
            # The common case without a call.
            if self._reserved + reserved <= self._budget:
                self._reserved += reserved
            elif not self._reserve(reserved):
                return False
            slab = self._slab
            offset = slab.used
            if offset + nbytes > SLAB_BYTES:
                self._retire(slab)
                slab = self._slab = Slab(self._shelf.take(SLAB_BYTES))
                offset = 0
            # Rounded up, so that copies start at cache lines.
            slab.used = (offset + nbytes + 63) & -64
            slab.taken += 1
        # An empty tensor may have no address.
        if nbytes:
            fill(slab.address + offset, *arguments)
        self._queue.append((description, slab, offset, nbytes, step))
        if self._asleep:
            self._wake.set()
        return True

    def put_from_device(
        self,
        description: Description,
        nbytes: int,
        step: int | None,
        place: Callable[..., tuple[DeviceSlab, int]],
        *arguments: object,
    ) -> bool:
        """What ``put_small`` does, for what ``place(*arguments)`` (of a ``Lane``) puts into a slab of a CUDA device.

        Raises what that raises.
        """
        reserved = nbytes + OVERHEAD_BYTES
        with self._lock:
            if self._reserved + reserved <= self._budget:
                self._reserved += reserved
            elif not self._reserve(reserved):
                return False
        try:
            slab, offset = place(*arguments)
        except BaseException:
            self.give_back(reserved)
            raise
        self._queue.append((description, slab, offset, nbytes, step))
        if self._asleep:
            self._wake.set()
        return True

    def _retire(self, slab: Slab) -> None:
        slab.retired = True
        if slab.released == slab.taken:
            self._shelf.give_back(slab.buffer)

    def give_back(self, nbytes: int) -> None:
        """Return what was reserved."""
        with self._lock:
            self._reserved -= nbytes
            self._room.notify_all()

    def _release(self, batch: Batch) -> None:
        """Give back the memory of what a batch held."""
        slabs = []
        for slab, values in batch.slabs.items():
            if isinstance(slab, Slab):
                slabs.append((slab, values))
            else:
                slab.release(values)
        with self._lock:
            for slab, values in slabs:
                slab.released += values
                if slab.retired and slab.released == slab.taken:
                    self._shelf.give_back(slab.buffer)
            self._reserved -= batch.reserved
            self._room.notify_all()

    def flush(self) -> bool:
        """Wait until all that was handed over is in the file; False when the thread has ended instead."""
        barrier = Barrier(threading.Event())
        self._waiting.append(None)
        try:
            self.put_now(barrier)
            while not barrier.reached.wait(IDLE_WAIT):
                if not self._thread.is_alive():
                    return False
        finally:
            self._waiting.pop()
        return True

    def stop(self) -> None:
        """Complete the file and end the thread."""
        self._waiting.append(None)
        self.put_now(Stop())
        if threading.current_thread() is not self._thread:
            self._thread.join()
            with self._lock:
                self._retire(self._slab)

    def _work(self) -> None:
        naps = waits = 0
        try:
            self._prepare_slabs()
            while True:
                batch = self._take(waits >= MOST_WAITS)
                if batch.items:
                    naps = 0
                    if not self._serve(batch):
                        return
                if not self._queue:
                    naps = self._rest(naps)
                elif batch.before_slab or not batch.items:
                    # The next value is on its way from a device. A slab will be there at once; but then the next one
                    # would have to be sent, in which the model has put a value or two, and so on.
                    waits = 0 if batch.items else waits + 1
                    self._wake.wait(self._nap)
                    continue
                waits = 0
        finally:
            with self._lock:
                self._room.notify_all()

    def _prepare_slabs(self) -> None:
        """Have slabs whose memory has been touched: nobody waits for this thread."""
        slabs = [self._shelf.take(SLAB_BYTES) for _ in range(SLABS_PREPARED)]
        for slab in slabs:
            slab.fill(0)
            self._shelf.give_back(slab)

    def _rest(self, naps: int) -> int:
        """Sleep, until woken when there was nothing to do for a while."""
        if naps < NAPS:
            self._wake.wait(self._nap)
            return naps + 1
        self._asleep = True
        # Looked at again after the flag is up: who put something before that did not see it.
        if not self._queue:
            self._wake.wait(IDLE_WAIT)
        self._asleep = False
        if naps == NAPS + IDLE_ROUNDS:
            self._shelf.pool.let_go()
        return naps + 1

    def _serve(self, batch: Batch) -> bool:
        """Write a batch; False when it was the last."""
        try:
            self._encoder.write(batch.items)
        except Exception:
            log().exception(
                "tensortap: up to %d values were not written because of an internal error", count_values(batch.items)
            )
        finally:
            self._release(batch)
            for barrier in batch.barriers:
                barrier.reached.set()
        return not batch.stops

    def _take(self, insist: bool) -> Batch:
        """The next items; a large value, which is written by itself, ends the batch, as does one that is still on its
        way, unless somebody waits or we are to ``insist``."""
        batch = Batch()
        queue, items, most, nbytes = self._queue, batch.items, LARGEST_BATCH, 0
        insist = insist or bool(self._waiting)
        if queue:
            self._nap = LONG_NAP
        while queue and most > 0 and nbytes < LARGEST_BATCH_BYTES:
            item = queue[0]
            if isinstance(item, tuple):
                slab = item[1]
                self._nap = NAP if isinstance(slab, Slab) else LONG_NAP
                if not (isinstance(slab, Slab) or slab.is_there or insist):
                    batch.before_slab = True
                    break
                values, taken = take_values(queue, most)
                items.append(values)
                batch.slabs[slab] = batch.slabs.get(slab, 0) + len(values)
                batch.reserved += taken + len(values) * OVERHEAD_BYTES
                nbytes += taken
                most -= len(values)
                continue
            if isinstance(item, Submission | ManyValues):
                data = item.data
                in_slab = isinstance(data, SlabPiece)
                self._nap = LONG_NAP if in_slab else NAP
                if not (isinstance(data, bytes | memoryview) or data.is_there or insist):
                    batch.before_slab = in_slab
                    break
                batch.reserved += item.reserved
                nbytes += item.reserved
            elif isinstance(item, BeginStep) and isinstance(item.layout, StagedLayout):
                if not (item.layout.is_there or insist):
                    break
            elif isinstance(item, Barrier):
                batch.barriers.append(item)
            elif isinstance(item, Stop):
                batch.stops = True
            # This thread alone takes items off.
            items.append(queue.popleft())
            most -= 1
        if nbytes > MUCH:
            self._nap = min(self._nap, LONG_NAP * SHORTENED)
        return batch

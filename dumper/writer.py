"""The writer thread: takes items off a queue, encodes them and appends them to the rank's file."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from pathlib import Path

from dumper.encoder import RankEncoder
from dumper.format.status import StatusBlock
from dumper.items import Barrier, Item, Stop, Submission
from dumper.settings import Settings

logger = logging.getLogger("tensortap")

IDLE_WAIT = 0.05
"""Seconds after which a sleeping writer looks again, should a wake-up have been missed."""


class Writer:
    """Owns the thread and the memory budget of one process. ``put`` may be called from any thread."""

    def __init__(self, settings: Settings, status: StatusBlock, encoder: RankEncoder) -> None:
        self._settings = settings
        self._status = status
        self._encoder = encoder
        self._queue: deque[Item] = deque()
        self._wake = threading.Event()
        self._idle = True
        self._room = threading.Condition()
        self._bytes_queued = 0
        self._bytes_done = 0
        self._thread = threading.Thread(target=self._work, name="tensortap-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over; never blocks."""
        self._queue.append(item)
        if self._idle:
            self._wake.set()

    def reserve(self, nbytes: int) -> bool:
        """Make room for a value in the memory budget; False when it is to be dropped.

        A value larger than the whole budget passes when nothing else is waiting. Waits when the policy says so.
        """
        if self._bytes_queued - self._bytes_done + nbytes > self._settings.memory_budget and not self._make_room(
            nbytes
        ):
            return False
        self._bytes_queued += nbytes
        return True

    def adjust(self, nbytes: int) -> None:
        """Correct the last reservation: what was staged takes this much more (or less, if negative)."""
        self._bytes_queued += nbytes

    def _make_room(self, nbytes: int) -> bool:
        def fits() -> bool:
            waiting = self._bytes_queued - self._bytes_done
            return waiting == 0 or waiting + nbytes <= self._settings.memory_budget

        if fits():
            return True
        if self._settings.when_full == "drop":
            return False
        with self._room:
            while not fits():
                if not self._thread.is_alive():
                    return False
                self._wake.set()
                self._room.wait(IDLE_WAIT)
        return True

    @property
    def bytes_waiting(self) -> int:
        """Bytes of values that are not in the file yet."""
        return self._bytes_queued - self._bytes_done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was handed over is in the file; False when that took longer than ``timeout`` seconds."""
        barrier = Barrier(threading.Event())
        self.put(barrier)
        while not barrier.reached.wait(IDLE_WAIT if timeout is None else min(timeout, IDLE_WAIT)):
            if not self._thread.is_alive():
                return False
            if timeout is not None:
                timeout -= IDLE_WAIT
                if timeout <= 0:
                    return False
        return True

    def stop(self) -> None:
        """Complete the file and end the thread."""
        self.put(Stop())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        try:
            while self._serve():
                pass
        except Exception:  # the thread must not die silently: what is still queued is lost
            logger.exception("tensortap: the writer stopped; later records are lost")
        finally:
            with self._room:
                self._room.notify_all()

    def _serve(self) -> bool:
        """One round; False when it was the last."""
        batch = self._take()
        if not batch:
            return True
        nbytes = sum(item.staged.nbytes for item in batch if isinstance(item, Submission))
        try:
            self._encoder.write(batch)
        finally:
            with self._room:
                self._bytes_done += nbytes
                self._room.notify_all()
            for item in batch:
                if isinstance(item, Barrier):
                    item.reached.set()
        return not any(isinstance(item, Stop) for item in batch)

    def _take(self) -> list[Item]:
        if not self._queue:
            self._idle = True
            if not self._queue:
                self._wake.wait(IDLE_WAIT)
            self._wake.clear()
            self._idle = False
        batch: list[Item] = []
        while self._queue and len(batch) < LARGEST_BATCH:
            batch.append(self._queue.popleft())
        return batch


LARGEST_BATCH = 256
"""Items per round: memory is given back and the status brought up to date between rounds."""


def status_path(run: Path, rank: int, process: int | None = None) -> Path:
    """The status file of a rank; of a process that could not claim the rank's file, one with its process id."""
    return run / (f"rank-{rank:05d}.status" if process is None else f"rank-{rank:05d}.{process}.status")


def current_process() -> int:
    """The process id, asked for anew: a fork changes it."""
    return os.getpid()

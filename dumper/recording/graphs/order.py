"""A replay begins only when what the one before has left is read, on whichever stream and thread that was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ReadOrder:
    """The order of replays and reads on one device. To be used under a lock that is held from before a replay until its
    values are read: the device then does things in the order in which they are handed over here."""

    def __init__(self, new_event: Callable[[], Any]) -> None:
        """``new_event``: makes an event without timing."""
        self._new_event = new_event
        self._read: Any = None
        """Reached when what the last replay has left is read; one event, recorded anew each time."""
        self._stream: Any = None
        """On which it is recorded."""

    def before_replay(self, stream: Any) -> None:
        """Have ``stream`` wait for the last read, where it does not come after it anyway."""
        if self._stream is not None and self._stream != stream:
            stream.wait_event(self._read)

    def after_read(self, stream: Any) -> None:
        """What the replay on ``stream`` has left is read, by work that has been handed to ``stream``."""
        if self._read is None:
            self._read = self._new_event()
        self._read.record(stream)
        self._stream = stream

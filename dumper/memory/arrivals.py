"""How the host learns that bytes have arrived: behind them the device copies a word into pinned memory.

Whoever waits looks at that word and asks CUDA nothing, which another thread may mind that is capturing a graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dumper.memory.cuda_runtime import TO_HOST, WORD, CudaRuntime, DeviceError
from dumper.memory.pinned import PinnedPiece

ASKED_AFTER = 5.0
"""Seconds without an answer, after which the device is asked whether it is still alive."""
_SHORTEST_SLEEP = 5e-5
_LONGEST_SLEEP = 2e-3
_WORDS = 4096
"""Words of a device, one for each slab and each large value on its way."""


class Words:
    """Words in pinned memory that a device sets when what was asked of it before is done."""

    def __init__(self, runtime: CudaRuntime, device: int) -> None:
        """Raises DeviceError."""
        self._runtime = runtime
        self._host = PinnedPiece(runtime, _WORDS * WORD)
        self._host.array[:] = 0
        self._values = self._host.view.cast("Q")
        self._free = list(range(_WORDS))
        with runtime.device(device):
            self._one = runtime.allocate(WORD)
            self.stream = runtime.make_stream()
            """Of our own: transfers of all streams of the device."""
        runtime.fill(self._one, 1, WORD, self.stream)

    def take(self) -> int:
        """A word that is not set, to be given back. Raises DeviceError when there is none."""
        try:
            return self._free.pop()
        except IndexError:
            raise DeviceError("too many values are on their way from the device") from None

    def give_back(self, word: int) -> None:
        """A word that nobody looks at any more, and that the device has set."""
        self._free.append(word)

    def clear(self, word: int) -> None:
        """Before it is asked for."""
        self._values[word] = 0

    def ask_for(self, word: int) -> None:
        """Have the device set it when what the stream was given before is done. Raises DeviceError."""
        self._runtime.copy(self._address(word), self._one, WORD, TO_HOST, self.stream)

    def send(self, word: int, event: int, stream: int | None, host: int, device: int, nbytes: int) -> bool:
        """Have bytes copied to the host and then the word set; what is more is with ``CudaRuntime.send``."""
        self.clear(word)
        return self._runtime.send(self.stream, event, stream, host, device, nbytes, self._address(word), self._one)

    def is_set(self, word: int) -> bool:
        """Whether the device has come that far."""
        return self._values[word] != 0

    def _address(self, word: int) -> int:
        return self._host.address + word * WORD

    def wait(self, word: int, settled: Callable[[], bool] = lambda: False) -> None:
        """Return when the word is set, or ``settled()`` says that somebody else has seen it set.

        Raises DeviceError when the device has failed.
        """
        values, pause = self._values, _SHORTEST_SLEEP
        silent_since = time.monotonic()
        while not values[word] and not settled():
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_SLEEP)
            if time.monotonic() - silent_since > ASKED_AFTER:
                self._runtime.check(self.stream)
                silent_since = time.monotonic()

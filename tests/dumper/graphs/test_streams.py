"""The order of replays and reads, on a device that does what streams and events allow in any order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from dumper.memory.cuda_runtime import ON_DEVICE
from dumper.recording.graphs.streams import ReadOrder
from tests.dumper.memory.stand_in import StandInRuntime

NBYTES = 64
REPLAYS = 60


@pytest.fixture
def runtime() -> Iterator[StandInRuntime]:
    runtime = StandInRuntime(seed=3)
    yield runtime
    runtime.end()


def test_no_value_is_overwritten_before_it_is_read(runtime: StandInRuntime) -> None:
    """Threads with streams of their own replay graphs that share their memory."""
    order, lock = ReadOrder(runtime, 0), threading.Lock()
    shared = runtime.upload(bytes(NBYTES))
    results: dict[int, int] = {}
    done = [runtime.make_event() for _ in range(3)]

    def replay_and_read(thread: int) -> None:
        stream = runtime.make_stream()
        for number in range(thread, REPLAYS, 3):
            source, result = runtime.upload(bytes([number]) * NBYTES), runtime.upload(bytes(NBYTES))
            with lock:
                order.before_replay(stream)
                # In two parts, between which others may come.
                runtime.copy(shared, source, NBYTES // 2, ON_DEVICE, stream)
                runtime.copy(shared + NBYTES // 2, source, NBYTES // 2, ON_DEVICE, stream)
                runtime.copy(result, shared, NBYTES, ON_DEVICE, stream)
                order.after_read(stream)
            results[number] = result
        runtime.record(done[thread], stream)

    threads = [threading.Thread(target=replay_and_read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 60
    while not all(map(runtime.is_reached, done)) and time.monotonic() < deadline:
        time.sleep(0.001)
    found = {number: runtime.memory[address].raw[:NBYTES] for number, address in results.items()}
    assert found == {number: bytes([number]) * NBYTES for number in range(REPLAYS)}


def test_a_stream_does_not_wait_for_itself(runtime: StandInRuntime) -> None:
    order = ReadOrder(runtime, 0)
    first, second = runtime.make_stream(), runtime.make_stream()
    for stream in (first, first, second, second, first):
        order.before_replay(stream)
        order.after_read(stream)
    assert [stream for stream, _ in runtime.waited_for] == [second, first]

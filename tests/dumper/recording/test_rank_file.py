"""The file of one rank: large payloads with their checksums, and writes that the system cuts short."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dumper.format import frames
from dumper.writing import rank_file
from dumper.writing.checksums import ChecksumThread, PendingChecksum
from dumper.writing.rank_file import HASHED_BESIDE, RankFile
from dumper.writing.whole_write import in_python

SIZES = (1, HASHED_BESIDE - 1, HASHED_BESIDE, HASHED_BESIDE + 12345)


@pytest.fixture(params=[True, False], ids=["hashed beside", "hashed block by block"])
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RankFile]:
    made = RankFile(tmp_path / "rank.ttap", 0o644, hashes_beside=request.param)
    yield made
    made.close()


def _payload(nbytes: int) -> bytes:
    return (bytes(range(251)) * (nbytes // 251 + 1))[:nbytes]


def _append(file: RankFile, payloads: Sequence[bytes | bytearray]) -> None:
    head = frames.encode_head(b"record", frames.encode_meta({}), len(payloads))
    file.append_large(head, [memoryview(payload) for payload in payloads])


def _check(file: RankFile, payloads: list[bytes], offset: int = 0) -> None:
    data = file.path.read_bytes()
    frame = frames.decode_frame(data, offset)
    assert frame.end == len(data) == file.position
    assert [data[place.offset : place.offset + place.length] for place in frame.payloads] == payloads
    assert all(frames.payload_is_intact(data, place) for place in frame.payloads)


def test_payloads_on_both_sides_of_the_size_from_which_they_are_hashed_beside(file: RankFile) -> None:
    payloads = [_payload(size) for size in SIZES]
    _append(file, payloads)
    _check(file, payloads)


def test_a_write_that_the_system_cuts_short_goes_on(file: RankFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_file, "write_whole", in_python)
    writev, write = os.writev, os.write
    monkeypatch.setattr(os, "writev", lambda to, buffers: writev(to, [memoryview(b"".join(buffers))[:777]]))
    monkeypatch.setattr(os, "write", lambda to, data: write(to, memoryview(data)[: HASHED_BESIDE // 3]))
    payloads = [_payload(size) for size in SIZES]
    _append(file, payloads)
    _check(file, payloads)


def test_after_a_failed_write_nobody_reads_the_payload(file: RankFile, monkeypatch: pytest.MonkeyPatch) -> None:
    _append(file, [b"before"])
    whole = file.position

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    begun: list[PendingChecksum] = []
    begin = ChecksumThread.begin

    def remember(self: ChecksumThread, payload: memoryview) -> PendingChecksum:
        begun.append(begin(self, payload))
        return begun[-1]

    monkeypatch.setattr(ChecksumThread, "begin", remember)
    with monkeypatch.context() as context:
        context.setattr(rank_file, "write_whole", fail)
        buffer = bytearray(_payload(HASHED_BESIDE))
        with pytest.raises(OSError, match="No space"):
            _append(file, [buffer])
    assert len(begun) == (file._checksums is not None)
    # A buffer that is still read could not be resized.
    buffer.clear()
    assert file.position == whole == file.path.stat().st_size
    _append(file, [_payload(HASHED_BESIDE)])
    _check(file, [_payload(HASHED_BESIDE)], offset=whole)


def test_checksums_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    payload = _payload(20 << 20)
    assert ChecksumThread().begin(memoryview(payload)).result() == frames.checksum(payload)


def test_a_checksum_that_is_given_up_lets_go_of_the_payload() -> None:
    thread = ChecksumThread()
    buffers = [bytearray(20 << 20) for _ in range(3)]
    for pending in [thread.begin(memoryview(buffer)) for buffer in buffers]:
        pending.give_up()
    for buffer in buffers:
        buffer.clear()
    thread.end()


def test_the_thread_ends_and_starts_again() -> None:
    thread = ChecksumThread()
    for content in (b"first", b"second"):
        assert thread.begin(memoryview(content)).result() == frames.checksum(content)
        thread.end()
        thread.end()

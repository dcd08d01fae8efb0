"""What compiled code does for many small records in one call: byte for byte what the Python code does."""

from __future__ import annotations

import threading
from array import array
from collections import deque
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.format import frames
from dumper.memory.buffers import Slab
from dumper.memory.cuda_runtime import DeviceError
from dumper.rules.levels import Level
from dumper.values.source import Source
from dumper.writing.framing import COMPILED, Framer, in_python, take_values
from dumper.writing.items import Barrier, Description, SmallRecord
from dumper.writing.record_encoder import EncodedBatch, RecordEncoder
from tests.harness.interpreter_lock import turns_beside

pytestmark = pytest.mark.skipif(not COMPILED, reason="the module is not built: python setup.py build_ext -i")

SLAB = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
LENGTHS = [*range(2000), 16383, 16384, 16385, 65536, 300_001]
STEPS = [None, 0, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1]
NEGATIVE_STEPS = [-1, -32, -33, -128, -129, -32768, -32769, -(1 << 31), -(1 << 31) - 1, -(1 << 63)]
NOT_IN_A_FILE = [1 << 63, 1 << 64, -(1 << 63) - 1]


class FailedSlab:
    """One whose bytes do not arrive from a device."""

    @property
    def view(self) -> memoryview:
        raise DeviceError("the device is gone")


def descriptions() -> list[Description]:
    """Some of one name, with tags and without; anew, since an encoder notes in them what it has worked out."""
    return [
        Description(
            Source(name, None, False, None, stream), tags, None, dtype, shape, Level(level), False, None, summed_bytes
        )
        for name in ("x", "layers.0.attention", "é" * 60)
        for tags in ((), (("layer", 3), ("text", "a" * 40)))
        for stream in ("value", "grad")
        for level, dtype, shape, summed_bytes in (
            ("full", None, None, None),
            ("full", "float32", (2, 3), None),
            ("hash", "float32", (2, 3), None),
            ("hash", "float32", (2, 3), 24),
            ("hash", "float32", (1,) * 43, 4),  # more than the framer takes, by a byte
            ("hash", "float32", (1,) * 42 + (10,), 4),
            ("hash", "u8", (), 1),
        )
    ]


def batch_of(encoder: RecordEncoder, records: list[SmallRecord], position: int = 0) -> EncodedBatch:
    """Records, encoded by themselves."""
    batch = EncodedBatch(position)
    encoder.encode_small(records, batch)
    return batch


def encoded(records: list[tuple[int, Any]], compiled: bool, together: int, compression: str | None = None) -> Any:
    """All that an encoder makes of records: (number of the description, what comes behind it)."""
    known = descriptions()
    encoder = RecordEncoder(compression, compiled)
    position, content, rows, failures, ends = 64, b"", array("q"), [], []
    for first in range(0, len(records), together):
        batch = batch_of(encoder, [(known[n], *rest) for n, rest in records[first : first + together]], position)
        content += b"".join(batch.buffers)
        if len(batch):
            ends.extend(batch.ends)
            rows.extend(batch.rows)
        failures.extend((name, type(error), str(error)) for name, error in batch.failures)
        position = batch.end
        assert position == 64 + len(content)
    return content, rows, ends, failures, encoder.descriptors


def in_slab(slab: Any, offset: int, nbytes: int, step: int | None) -> tuple[Any, int, int, int | None]:
    return slab, offset, nbytes, step


SLABS = [Slab(SLAB), Slab(SLAB[::-1].copy())]
steps = st.sampled_from(STEPS + NEGATIVE_STEPS + NOT_IN_A_FILE) | st.integers(0, 100)
lengths = st.sampled_from(LENGTHS) | st.just(16)
contents = (
    st.builds(in_slab, st.sampled_from(SLABS), st.integers(0, 1000), lengths, steps)
    | st.builds(in_slab, st.just(FailedSlab()), st.just(0), lengths, steps)
    | st.tuples(st.builds(lambda length: SLAB[:length].tobytes(), lengths), steps)
    | st.tuples(st.builds(lambda first, length: SLAB.data[first : first + length], st.integers(0, 99), lengths), steps)
)
recorded = st.lists(st.tuples(st.integers(0, len(descriptions()) - 1), contents), max_size=40)


@settings(deadline=None)
@given(recorded, st.integers(1, 40))
def test_the_same_bytes_rows_and_failures(records: list[tuple[int, Any]], together: int) -> None:
    assert encoded(records, True, together) == encoded(records, False, together)


@pytest.mark.parametrize("step", [*STEPS, *NEGATIVE_STEPS, *NOT_IN_A_FILE])
def test_many_of_one_description(step: int | None) -> None:
    # Occurrence numbers of every length, more records than are looked at in one go, and those before them known.
    records = [(0, (SLABS[0], n % 5000, 8, step)) for n in range(1000)]
    assert encoded(records, True, 700) == encoded(records, False, 700)


def test_numbers_of_steps_long_ago_are_forgotten_alike() -> None:
    records = [(n % 3, (b"x", step)) for step in (*range(100), *range(50, 80), *range(20)) for n in range(3)]
    one = encoded(records, True, 50)
    assert one == encoded(records, False, 50)
    last = frames.decode_frame(one[0], one[2][-2] - 64)
    assert frames.decode_meta(last.meta)["occurrence"] == 2  # of three that have the same name


def test_checksums_of_every_length() -> None:
    records = [(0, (SLABS[0], 7, length, 0)) for length in LENGTHS]
    content, rows, *_ = encoded(records, True, 500)
    for number, length in enumerate(LENGTHS):
        offset = rows[7 * number] - 64
        frame = frames.decode_frame(content, offset)
        assert frame.payloads[0].checksum == xxhash.xxh3_64_intdigest(SLAB[7 : 7 + length])
        assert frame.payloads[0].length == length


@pytest.mark.parametrize("dimensions", range(50))
def test_fingerprints_from_sums_of_every_length(dimensions: int) -> None:
    # One character after the other, beyond what the framer takes.
    shape = (1,) * (dimensions // 2) + (10,) * (dimensions % 2)
    found = []
    for compiled in (True, False):
        description = Description(
            Source("x", None, False, None, "value"), (), None, "bool", shape, Level("hash"), False, None, 1
        )
        encoder = RecordEncoder(None, compiled)
        batches = [batch_of(encoder, [(description, SLABS[0], 16 * n, 16, 0)]) for n in range(4)]
        found.append([b"".join(batch.buffers) for batch in batches])
    assert found[0] == found[1]


def test_compressed_records_are_left_to_python() -> None:
    records = [(0, (bytes(length), 0)) for length in (0, 511, 512, 5000)]
    assert encoded(records, True, 3, "zstd") == encoded(records, False, 3, "zstd")


def test_buffers_of_a_batch_stay_as_they_are_while_others_are_made() -> None:
    known, encoder = descriptions(), RecordEncoder(None)
    records: list[SmallRecord] = [(known[0], bytes([n % 256]) * 100, 0) for n in range(300)]
    batches = [batch_of(encoder, records) for _ in range(4)]
    found = [b"".join(batch.buffers) for batch in batches]
    for order, content in zip(range(0, 1200, 300), found, strict=True):
        assert frames.decode_meta(frames.decode_frame(content, 0).meta)["order"] == order
    del batches
    batch_of(encoder, records)


def test_the_interpreter_lock_is_let_go() -> None:
    known, encoder = descriptions(), RecordEncoder(None)
    records: list[SmallRecord] = [(known[0], SLABS[0], 0, 100, 0)] * 1000
    batch_of(encoder, records[:1])
    # So often that the thread that counts gets a processor meanwhile.
    assert turns_beside(lambda: [batch_of(encoder, records) for _ in range(50)]) > 100


def test_what_is_no_record_is_left() -> None:
    framer = Framer(Description, type(_known(descriptions()[0])), 64)
    description = descriptions()[0]
    _known(description)
    good = (description, b"abc", 0)
    for bad in (
        (description, SLABS[0], -1, 3, 0),
        (description, SLABS[0], 0, -3, 0),
        (description, SLABS[0], len(SLAB) - 1, 2, 0),
        (description, SLABS[0], 1 << 70, 2, 0),
        (description, "text", 0),
        (description, SLAB.view(np.int16).data, 0),
        (description, b"abc", 0.5),
        (descriptions()[0], b"abc", 0),
        (description, b"abc"),
        [description, b"abc", 0],
        None,
    ):
        buffers: list[Any] = []
        following, end, rows = framer.encode([good, bad, good], 0, 0, 0, buffers)
        assert (following, end, len(rows)) == (1, len(b"".join(buffers)), 7 * 8)
    with pytest.raises(TypeError):
        framer.encode((good,), 0, 0, 0, [])  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        Framer(Source, Source, 64)


def _known(description: Description) -> Any:
    batch_of(RecordEncoder(None), [(description, b"", 0)])
    return description.encoded


queued = st.builds(in_slab, st.sampled_from([*SLABS, FailedSlab()]), st.integers(0, 99), st.integers(0, 99), steps)


@given(queued, st.lists(queued | st.just(Barrier(threading.Event())) | st.just(None)), st.integers(1, 20))
def test_values_of_one_slab_are_taken_off_a_queue(first: Any, others: list[Any], most: int) -> None:
    whole = [value if not isinstance(value, tuple) else (None, *value) for value in (first, *others)]
    found = []
    for function in (take_values, in_python):
        queue = deque(whole)
        values, nbytes = function(queue, most)
        assert [*values, *queue] == whole
        assert nbytes == sum(value[3] for value in values)
        found.append(len(values))
    assert 0 < found[0] == found[1] <= most
    with pytest.raises(TypeError):
        take_values(deque(whole))  # type: ignore[call-arg]

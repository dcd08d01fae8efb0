"""What is held against a reference, and what it took there on the processor of ``ratios.MEASURED_ON``.

``python -m tests.speed`` measures all of it anew and prints the table.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np
import numpy.typing as npt
import torch
import xxhash
from numpy._core._multiarray_umath import __cpu_features__

from comparator.align import adding
from comparator.diagnosis import kernel as diagnosis
from comparator.measure import kernel, quoting, torch_sums
from comparator.measure.kernel.many import Places, measure_many
from dumper.format import checking as checks
from dumper.format import frames
from dumper.memory.buffers import Slab
from dumper.readers.sglang import plain_pt, pt_format
from dumper.readers.streams.scan import scan
from dumper.recording import shortcut
from dumper.recording.recorder import Recorder
from dumper.rules.levels import Level
from dumper.settings import Settings
from dumper.values import crc32
from dumper.values import fingerprint as fingerprints
from dumper.values import statistics as of_tensors
from dumper.values.source import Source
from dumper.writing import framing
from dumper.writing.items import Description
from dumper.writing.record_encoder import EncodedBatch, RecordEncoder
from tests.speed.ratios import Work

ROWS, CHANNELS, PAGE = 128, 1024, 4096
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
PLAIN, AVX2, AVX512, BFLOAT = range(4)
"""What ``limit`` of a compiled module knows: the instructions that it uses."""
ALL = 1 << 10
"""More than any processor has."""

WITH_AVX512 = 2.24
"""Times as fast is the reference of arithmetic as with AVX2; what was measured was measured with it."""


def numpy_has_avx512() -> bool:
    """Whether numpy's loops use it."""
    return bool(__cpu_features__.get("X86_V4", __cpu_features__.get("AVX512_SKX", False)))


Make = Callable[[Path], Work]
"""Makes work that may keep files in a folder."""


class Case(NamedTuple):
    name: str
    make: Make
    reference: Make
    measured: Mapping[Any, float]
    """How many times what the reference takes, with each of the instructions; None: those that it finds by itself."""
    module: ModuleType
    """With the compiled one as ``_compiled``."""

    def expected(self, level: int | None) -> float:
        """What it takes beside the reference as numpy has it here."""
        slower = self.reference is arithmetic and not numpy_has_avx512()
        return self.measured[level] / (WITH_AVX512 if slower else 1)

    @property
    def is_here(self) -> bool:
        """Whether there are instructions for it; of cases that find them by themselves as well."""
        return self.reference is not arithmetic or kernel._compiled.limit(ALL) >= AVX2

    @property
    def has_levels(self) -> bool:
        """Whether the compiled module can be told which instructions to use."""
        return None not in self.measured


def in_page(value: npt.NDArray[Any], offset: int) -> npt.NDArray[Any]:
    """A copy that begins so many bytes behind the beginning of a page: where it lies makes a fourth of what passes over
    it take."""
    room = np.empty(value.nbytes + 2 * PAGE, np.uint8)
    begin = -room.ctypes.data % PAGE + offset
    found = room[begin : begin + value.nbytes].view(value.dtype).reshape(value.shape)
    found[...] = value
    return found


@functools.cache
def sides(dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    generator = np.random.default_rng(0)
    value = generator.standard_normal((ROWS, CHANNELS), np.float32)
    noise = generator.standard_normal((ROWS, CHANNELS), np.float32)
    return in_page(value.astype(DTYPES[dtype]), 0), in_page((value + 1e-3 * noise).astype(DTYPES[dtype]), PAGE // 2)


def arithmetic(_: Path) -> Work:
    """Vectors of float32 in the cache of the first level and the second: numpy's exponential function."""
    values = sides("float32")[0][:32]
    out = in_page(values, PAGE // 2)
    return Work(lambda: np.exp(values, out=out))


def sums(dtype: str, **options: Any) -> Make:
    return lambda _: Work(functools.partial(kernel.measure_sums, *sides(dtype), by_row=True, **options))


def sums_of_many(_: Path) -> Work:
    bits = [side.reshape(-1).view(np.uint8) for side in sides("bfloat16")]
    starts, sizes = np.arange(0, bits[0].nbytes, 2 * CHANNELS), np.full(ROWS, CHANNELS)
    left, right = (Places(memoryview(data), starts, DTYPES["bfloat16"]) for data in bits)
    dtype = np.dtype(np.float32)
    return Work(lambda: measure_many(left, right, sizes, 256, dtype=dtype, by_row=True, by_channel=True))


def first_look(dtype: str) -> Make:
    return lambda _: Work(lambda: diagnosis.first_look(diagnosis.Matrices(*sides(dtype))))


def channel_sums(dtype: str) -> Make:
    rows, factors = np.arange(ROWS), np.ones(ROWS, np.float32)
    return lambda _: Work(lambda: diagnosis.channel_sums(diagnosis.Matrices(*sides(dtype)), rows, factors))


def median(_: Path) -> Work:
    values = sides("float32")[0].reshape(-1)[: 1 << 15].astype(np.float64)
    return Work(lambda: diagnosis.median(values))


def standing_out(_: Path) -> Work:
    energy, size, product = np.square(sides("float32")[0].reshape(-1)[: 3 << 13].astype(np.float64)).reshape(3, -1)
    return Work(lambda: diagnosis.standing_out(energy, size, product, 4096.0, 1e-6, 1e-6, 16.0, 1e-300))


def as_torch(dtype: str) -> Make:
    return lambda _: Work(lambda: torch_sums.sums_as_torch(*(side[:24] for side in sides(dtype))))


def added(dtype: str) -> Make:
    members = [side[:32] for side in sides(dtype)] * 4
    return lambda _: Work(lambda: adding.add_halves(members, from_zero=False))


def stats(dtype: str) -> Make:
    return lambda _: Work(lambda: of_tensors.of_array(sides(dtype)[0]))


def fingerprint(_: Path) -> Work:
    data = sides("bfloat16")[0].view(np.uint8)
    return Work(lambda: fingerprints.fingerprint("bfloat16", (ROWS, CHANNELS), data))


def crc(_: Path) -> Work:
    data = sides("bfloat16")[0].view(np.uint8)
    return Work(lambda: crc32.crc32(data))


def text_of_values(_: Path) -> Work:
    values = np.ascontiguousarray(sides("float32")[0][:8, :16])
    return Work(lambda: quoting.quoted(values))


def json_of_values(_: Path) -> Work:
    values = sides("float32")[0][:8, :16].astype(np.float64).tolist()
    return Work(lambda: json.dumps(values))


def pt_files(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.pt" for number in range(16)]
    for path in paths:
        meta = {"name": "hidden", "rank": 0, "step": 3, "parallel": {"tp_rank": 0, "tp_size": 2}}
        torch.save({"value": torch.ones(8, 64, dtype=torch.bfloat16), "meta": meta}, path)
    return paths


def read_pt_files(folder: Path) -> Work:
    paths = [os.fsencode(path) for path in pt_files(folder)]

    def call() -> None:
        found = [plain_pt.told(head) for head in pt_format.heads(paths)]
        assert None not in found
        stored = [(path, one.tensors[0], one.stamp) for path, one in zip(paths, found, strict=True) if one is not None]
        assert all(plain_pt.read_together(stored)[1])

    return Work(call)


def read_files(folder: Path) -> Work:
    paths = [os.fsencode(path) for path in pt_files(folder)]

    def call() -> None:
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.fstat(descriptor)
            os.read(descriptor, 1 << 16)
            os.close(descriptor)

    return Work(call)


def record(level: str) -> Make:
    def make(folder: Path) -> Work:
        recorder = Recorder(Settings(enable=True, control=False, dir=str(folder), run="speed", level=level))
        value = torch.ones(8, 64, dtype=torch.bfloat16)
        recorder.step()
        for _ in range(2000):  # through all of the memory that is used again
            recorder.dump("hidden", value, dims="t h", layer_id=3)
        recorder.flush()
        return Work(lambda: recorder.dump("hidden", value, dims="t h", layer_id=3), recorder.flush, recorder.close)

    return make


def record_nothing(_: Path) -> Work:
    recorder, value = Recorder(Settings(enable=False, control=False)), torch.ones(8, 64, dtype=torch.bfloat16)
    return Work(lambda: recorder.dump("hidden", value, dims="t h", layer_id=3))


def clone(_: Path) -> Work:
    value = torch.ones(8, 64, dtype=torch.bfloat16)
    return Work(lambda: [value.clone() for _ in range(4)])


def call_nothing(_: Path) -> Work:
    value = torch.ones(8, 64, dtype=torch.bfloat16)

    def dump(name: str, value: Any, *, dims: str, **tags: Any) -> None:
        pass

    return Work(lambda: dump("hidden", value, dims="t h", layer_id=3))


def encode(_: Path) -> Work:
    source = Source("hidden", "model.Layer.forward#1:hidden", False, None, "value")
    known = [
        Description(source, (("layer_id", layer),), "t h", "bfloat16", (8, 64), Level("full"), False)
        for layer in range(32)
    ]
    slab, encoder = Slab(np.ones(1 << 20, np.uint8)), RecordEncoder(None)
    records: list[Any] = [(one, slab, 1024 * number, 1024, 7) for number, one in enumerate(known)]
    return Work(lambda: encoder.encode_small(records, EncodedBatch(64)))


def pack(_: Path) -> Work:
    fields = {
        "name": "hidden",
        "tags": {"layer_id": 3},
        "dims": "t h",
        "dtype": "bfloat16",
        "shape": [8, 64],
        "step": 7,
    }
    payload = bytes(1024)

    def call() -> None:
        for _ in range(32):
            packed = msgpack.packb(fields)
            b"".join((packed, xxhash.xxh3_64_digest(packed), payload, xxhash.xxh3_64_digest(payload)))

    return Work(call)


META = {"name": "hidden", "tags": {"layer_id": 3}, "dims": "t h", "dtype": "bfloat16", "shape": [8, 64]}


@functools.cache
def file_of_records() -> bytes:
    """64 records of a kilobyte with an index, as the dumper writes them."""
    encoder, slab, parts = RecordEncoder(None), Slab(np.ones(1 << 16, np.uint8)), EncodedBatch(0)
    source = Source("hidden", "model.Layer.forward#1:hidden", False, None, "value")
    known = Description(source, (("layer_id", 3),), "t h", "bfloat16", (8, 64), Level("full"), False)
    records: list[Any] = [(known, slab, 1024 * number, 1024, number) for number in range(64)]
    encoder.encode_small(records, parts)
    data = b"".join(map(bytes, parts.buffers))
    columns, _ = scan(Path("file"), data)
    index = frames.encode_frame("index", columns.meta(), len(data), (columns.encode(),))
    return data + index + frames.encode_footer(len(data))


def check(_: Path) -> Work:
    data = file_of_records()

    def call() -> None:
        checking = checks.Checking([data])
        checking.finish(lambda done: None)
        assert checking.outcome(0).prefixes is not None

    return Work(call)


def scan_records(_: Path) -> Work:
    data = file_of_records()
    return Work(lambda: scan(Path("file"), data))


def unpack(_: Path) -> Work:
    packed, payload = msgpack.packb(META), bytes(1024)

    def call() -> None:
        for _ in range(64):
            xxhash.xxh3_64_intdigest(packed)
            xxhash.xxh3_64_intdigest(payload)
            msgpack.unpackb(packed)

    return Work(call)


CHECKSUMS: dict[str, Any] = {"before": (int, int), "digests": True}
OF_DTYPES = (
    ("sums of rows", sums, kernel, {
        "bfloat16": {BFLOAT: 2.62, AVX512: 3.85, AVX2: 3.8},
        "float16": {AVX512: 10.7, AVX2: 11.5},
        "float32": {AVX512: 8.9, AVX2: 9.5},
    }),
    ("first look", first_look, diagnosis, {
        "bfloat16": {AVX512: 7.2, AVX2: 7.25},
        "float16": {AVX512: 8.4, AVX2: 10.0},
        "float32": {AVX512: 8.1, AVX2: 8.1},
    }),
    ("sums of channels", channel_sums, diagnosis, {
        "bfloat16": {AVX512: 4.8, AVX2: 4.6},
        "float16": {AVX512: 6.0, AVX2: 7.8},
        "float32": {AVX512: 5.75, AVX2: 5.75},
    }),
    ("sums as torch's", as_torch, torch_sums, {
        "bfloat16": {AVX512: 1.0, AVX2: 1.1},
        "float16": {AVX512: 1.2, AVX2: 1.5},
        "float32": {AVX512: 1.0, AVX2: 1.12},
    }),
    ("statistics", stats, of_tensors, {
        "bfloat16": {AVX512: 2.77, AVX2: 2.85},
        "float16": {AVX512: 2.9, AVX2: 3.0},
        "float32": {AVX512: 2.95, AVX2: 3.0},
    }),
    ("summands", added, adding, {"bfloat16": {None: 1.8}, "float16": {None: 6.0}}),
)  # fmt: skip
CASES = [
    *(
        Case(f"{name}, {dtype}", make(dtype), arithmetic, measured, module)
        for name, make, module, of_each in OF_DTYPES
        for dtype, measured in of_each.items()
    ),
    *(
        Case(name, make, arithmetic, measured, kernel)
        for name, make, measured in (
            ("sums of channels too", sums("bfloat16", by_channel=True), {BFLOAT: 3.23, AVX512: 4.42, AVX2: 4.45}),
            (
                "checksums too",
                sums("bfloat16", before=(int, int), digests=True),
                {BFLOAT: 3.67, AVX512: 4.88, AVX2: 4.85},
            ),
            ("sums of many pairs", sums_of_many, {BFLOAT: 8.5, AVX512: 9.9, AVX2: 10.0}),
        )
    ),
    Case("median", median, arithmetic, {AVX512: 5.5, AVX2: 7.9}, diagnosis),
    Case("channels that stand out", standing_out, arithmetic, {AVX512: 5.0, AVX2: 6.1}, diagnosis),
    Case("fingerprint", fingerprint, arithmetic, {AVX512: 0.73, AVX2: 1.2}, fingerprints),
    Case("CRC-32", crc, arithmetic, {None: 1.23}, crc32),
    Case("values as text", text_of_values, json_of_values, {None: 0.33}, quoting),
    Case("reading .pt files", read_pt_files, read_files, {None: 2.4}, pt_format),
    Case("checking records", check, unpack, {None: 0.3}, checks),
    Case("scanning records", scan_records, unpack, {None: 0.53}, checks),
    Case("encoding records", encode, pack, {None: 0.2}, framing),
    Case("recording", record("full"), clone, {None: 0.23}, shortcut),
    Case("recording, stats", record("stats"), clone, {None: 0.24}, shortcut),
    Case("recording, hash", record("hash"), clone, {None: 0.23}, shortcut),
    Case("recording that is off", record_nothing, call_nothing, {None: 1.8}, shortcut),
]

"""The records of one rank, and what else its files say: header, steps, taps. Small arrays are also given many at once,
as they lie in the file: an object for each record takes longer than the checksum of a small one."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Struct, field

from dumper.format import frames
from dumper.format.frames import FormatError
from dumper.format.index import NO_STEP
from dumper.readers.streams.metadata import read_broken_off, read_coverage, read_graph_coverage, read_header
from dumper.readers.streams.record import StoredRecord
from dumper.readers.streams.segments import Segment
from dumper.reading.headers import RankHeader
from dumper.reading.protocol import ArraysInFile, GraphCoverage, Problem, TapCoverage
from dumper.values.dtypes import numpy_dtype
from tensortap.distinct import distinct


class RankRecords(Struct, dict=True):
    """The segments of one rank, and what is read from them on demand."""

    rank: int
    segments: list[Segment]
    problems: list[Problem] = field(default_factory=list)
    known_steps: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    """Metadata of steps by the digest of their bytes, of all ranks: most ranks of a step say the same."""

    @functools.cached_property
    def others(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and metadata of every frame that is neither record, step nor index."""
        found = []
        for segment in self.segments:
            for offset in segment.index.others.tolist():
                try:
                    kind, meta = segment.kind_and_meta(offset)
                    found.append((kind, frames.decode_meta(meta)))
                except FormatError as error:
                    self.problems.append(Problem("corrupted", f"{segment.path.name}: {error}"))
        return found

    @functools.cached_property
    def steps(self) -> dict[int, dict[str, Any]]:
        """Metadata of the steps."""
        found: dict[int, dict[str, Any]] = {}
        for segment in self.segments:
            for offset in segment.index.steps.tolist():
                try:
                    meta = self._step(segment.kind_and_meta(offset)[1])
                    found[int(meta["step"])] = meta
                except (FormatError, KeyError, TypeError, ValueError) as error:
                    self.problems.append(Problem("corrupted", f"{segment.path.name}: a step cannot be read: {error}"))
        return found

    def _step(self, encoded: bytes) -> dict[str, Any]:
        digest = xxhash.xxh3_128_digest(encoded)
        found = self.known_steps.get(digest)
        if found is None:
            found = self.known_steps[digest] = frames.decode_meta(encoded)
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [meta for found, meta in self.others if found == kind]

    @functools.cached_property
    def header(self) -> RankHeader:
        """What the rank says of itself. Where it is damaged, one that knows the rank alone."""
        return read_header(self.rank, self.of_kind("header"), self.of_kind("config"), self.of_kind("parallel"))

    def select(self, name: str | None, step: int | None, tags: Mapping[str, Any]) -> list[StoredRecord]:
        """The records with this name, step and these tags, in order."""
        return [
            StoredRecord(segment, row, self.rank)
            for segment in self.segments
            for row in _matching_rows(segment, name, step, tags)
        ]

    def taps(self) -> list[TapCoverage]:
        """Every tap that was installed, and how often it fired."""
        recorded: dict[str, int] = {}
        for segment in self.segments:
            amounts = np.bincount(segment.index.columns["descriptor"], minlength=len(segment.index.descriptors))
            for descriptor, amount in zip(segment.index.descriptors, amounts.tolist(), strict=False):
                if (tap := descriptor.get("tap")) is not None:
                    recorded[tap] = recorded.get(tap, 0) + amount
        return read_coverage(self.rank, self.of_kind("taps"), self.of_kind("coverage"), recorded, len(self.steps))

    def cuda_graphs(self) -> GraphCoverage | None:
        """What was recorded of CUDA graphs; None where there were none, or the rank did not come to an orderly end."""
        return read_graph_coverage(self.rank, self.of_kind("coverage"))

    @property
    def broken_off(self) -> int | None:
        """The step in whose middle the rank ended in order; None where it did not."""
        return read_broken_off(self.of_kind("coverage"))

    def distinct_steps(self) -> set[int]:
        """Numbers of the steps that were begun or hold a record."""
        numbers = set(self.steps)
        for segment in self.segments:
            numbers.update(distinct(segment.index.columns["step"]).tolist())
        return numbers - {NO_STEP}


class Records(Sequence[StoredRecord]):
    """Records by rank and order, made when they are asked for."""

    def __init__(self, ranks: Mapping[int, RankRecords]) -> None:
        self._parts = [(rank, segment) for rank, part in sorted(ranks.items()) for segment in part.segments]
        self._starts = [0, *itertools.accumulate(len(segment.index) for _, segment in self._parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._starts, index) - 1
        rank, segment = self._parts[part]
        return StoredRecord(segment, int(index) - self._starts[part], rank)

    def by_segment(
        self, numbers: npt.NDArray[np.int64]
    ) -> Iterator[tuple[Segment, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Of each file that has some of these records: which of ``numbers`` they are, and their rows in its index."""
        part = np.searchsorted(self._starts, numbers, side="right") - 1
        for one in distinct(part).tolist():
            at = np.flatnonzero(part == one)
            yield self._parts[one][1], at, numbers[at] - self._starts[one]

    def __iter__(self) -> Iterator[StoredRecord]:
        for rank, segment in self._parts:
            for row in range(len(segment.index)):
                yield StoredRecord(segment, row, rank)


def _matching_rows(segment: Segment, name: str | None, step: int | None, tags: Mapping[str, Any]) -> list[int]:
    index = segment.index
    wanted = [
        number
        for number, descriptor in enumerate(index.descriptors)
        if (name is None or descriptor.get("name") == name)
        and all(key in descriptor.get("tags", {}) and descriptor["tags"][key] == value for key, value in tags.items())
    ]
    mask = np.isin(index.columns["descriptor"], np.array(wanted, dtype="<u4"))
    if step is not None:
        mask &= index.columns["step"] == step
    rows: list[int] = np.flatnonzero(mask).tolist()
    return rows


Integers = npt.NDArray[np.int64]


def arrays_in_files(records: Records, numbers: Integers, most: int) -> Iterator[ArraysInFile]:
    """See ``Run.arrays_in_files``."""
    for segment, at, rows in records.by_segment(numbers):
        if not segment.is_mapped or segment.shortened is not None:
            continue
        descriptor = segment.index.columns["descriptor"][rows]
        for number in distinct(descriptor).tolist():
            chosen = descriptor == number
            yield from _of_one_kind(segment, at[chosen], rows[chosen], most)


def _of_one_kind(segment: Segment, at: Integers, rows: Integers, most: int) -> Iterator[ArraysInFile]:
    known = segment.described(int(rows[0]))
    if known.dtype is None or known.shape is None or known.level != "full":
        return
    try:
        dtype = numpy_dtype(known.dtype)
        size = np.empty(0, dtype).itemsize * int(np.prod(known.shape, dtype=object))
    except (ValueError, TypeError):
        return
    if dtype.subdtype is not None or not 0 < size <= most:
        return
    columns = segment.index.columns
    starts = columns["payload_offset"][rows].astype(np.int64)
    intact = frames.hold_intact(segment.data, columns["offset"][rows].tolist(), starts.tolist(), size)
    if all(intact):
        yield ArraysInFile(at, segment.data, starts, dtype, known.shape)
    elif any(intact):
        yield ArraysInFile(at[intact], segment.data, starts[intact], dtype, known.shape)

"""Arrays that lie in mapped files as they were recorded, many at once: an object for each record takes longer than the
checksum of a small one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dumper.format import frames
from dumper.readers.streams.rank_records import Records
from dumper.readers.streams.segments import Segment
from dumper.reading.protocol import ArraysInFile
from dumper.values.dtypes import numpy_dtype
from tensortap.distinct import distinct

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

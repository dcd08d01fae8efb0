"""The records of a run as columns, so that millions are told apart and grouped without an object for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dumper.format.index import NO_STEP

if TYPE_CHECKING:
    from dumper.reading.protocol import Record

OUTSIDE_STEPS = NO_STEP
"""In the column ``step``: outside any."""


class RecordColumns(Struct, frozen=True, eq=False):
    """All records, in the order of ``Run.records``. Those of one kind differ in rank, step, occurrence, order and
    content alone."""

    kinds: Sequence[Record]
    """The first record of each kind."""
    kind: npt.NDArray[np.int32]
    """Of each record, the number of its kind."""
    rank: npt.NDArray[np.int32]
    step: npt.NDArray[np.int64]
    """Of each record, the step; ``OUTSIDE_STEPS`` for none."""
    occurrence: npt.NDArray[np.uint32]

    @property
    def one_by_one(self) -> bool:
        """Whether every record is a kind of its own."""
        return len(self.kinds) == len(self.kind)


def columns_of_records(records: Iterable[Record]) -> RecordColumns:
    """Columns in which each record is a kind of its own."""
    kinds = list(records)
    return RecordColumns(
        kinds,
        np.arange(len(kinds), dtype=np.int32),
        np.array([record.rank for record in kinds], np.int32),
        np.array([OUTSIDE_STEPS if record.step is None else record.step for record in kinds], np.int64),
        np.array([record.occurrence for record in kinds], np.uint32),
    )

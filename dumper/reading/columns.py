"""The records of a run as columns, so that millions are told apart and grouped without an object for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from dumper.format.index import NO_STEP
from dumper.reading.protocol import RecordColumns

if TYPE_CHECKING:
    from dumper.reading.protocol import Record

OUTSIDE_STEPS = NO_STEP
"""In the column ``step``: outside any."""


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

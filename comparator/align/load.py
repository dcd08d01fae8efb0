"""Read the payload of a record, and only when it is what was written."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from comparator.errors import PairError
from comparator.match.runs import RecordView


def load_array(record: RecordView) -> npt.NDArray[Any]:
    """The array of a record; raises PairError, naming rank and place, when its bytes are damaged."""
    intact = getattr(record, "is_intact", None)
    if intact is not None and not intact():
        where = getattr(record, "source", None)
        raise PairError(
            f"the record of {record.name} on rank {record.rank}{f' at {where}' if where else ''} is damaged: its bytes "
            "do not match their checksum",
            hint="python -m dumper verify RUN lists what else is",
        )
    return record.array()

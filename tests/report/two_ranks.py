"""A model with experts, recorded by one rank and as if by two of which one is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.comparator.diagnosis.simulator import Recording
from tests.comparator.fakes import FakeRun
from tests.comparator.test_analysis import as_run


def two_ranks(recorded: Recording) -> FakeRun:
    """A recording of one rank as one of two, which hold half of the channels of ``attn_pre_o_proj`` each."""
    whole = as_run(recorded)
    records = []
    for rank in range(2):
        for record in whole.records:
            assert record.data is not None
            half = record.name == "attn_pre_o_proj"
            data = np.split(record.data, 2, axis=1)[rank] if half else record.data
            dims = "t h[tp]" if half else "t h # tp:replicated"
            records.append(replace(record, rank=rank, data=np.ascontiguousarray(data), dims=dims))
    layouts = {(0, rank): whole.layouts[0, 0] for rank in range(2)}
    return FakeRun(records, {rank: {"tp": (rank, 2)} for rank in range(2)}, layouts)


def half_scaled(tap: str, layer: int | None, value: np.ndarray) -> np.ndarray:
    """The fault of rank 1 in layer 1, and of expert 3 in layer 2."""
    if (tap, layer) == ("attn_pre_o_proj", 1):
        value[:, value.shape[1] // 2 :] *= np.float32(1.5)
    return value * np.float32(3) if (tap, layer) == ("expert 3", 2) else value

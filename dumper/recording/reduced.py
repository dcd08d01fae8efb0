"""Values reduced to what the levels ``stats`` and ``sample`` keep of them, on the device where they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from dumper.format.dtypes import name_of
from dumper.levels import FULL, Level
from dumper.measures import STATISTICS, device_statistics, host_statistics
from dumper.recording.staging import as_host_array, describe_tensor


@dataclass(frozen=True)
class Reduced:
    """What is kept, and what it was made of."""

    kept: Any
    level: Level
    """``full`` where there is nothing to reduce: values that are no tensors, and samples of scalars."""
    dtype: str | None
    """Of the original; None for a value that is no tensor."""
    shape: tuple[int, ...] | None


def reduce_value(value: Any, level: Level) -> Reduced:
    """Reduce a tensor or array. Raises UnrecordableError for a tensor that has no bytes to record."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach()
        dtype, shape = describe_tensor(value)
        if level.kind == "stats":
            return Reduced(device_statistics(value), level, dtype, shape)
    else:
        array = as_host_array(value)
        if array is None:
            return Reduced(value, FULL, None, None)
        value, dtype, shape = array, name_of(array.dtype), array.shape
        if level.kind == "stats":
            import numpy as np

            numbers = host_statistics(array)
            return Reduced(np.array([numbers[name] for name in STATISTICS], dtype="<f8"), level, dtype, shape)
    if not shape:
        return Reduced(value, FULL, dtype, shape)
    return Reduced(value[level.row_slice], level, dtype, shape)

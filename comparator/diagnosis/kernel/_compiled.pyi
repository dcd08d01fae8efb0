from typing import Any

import numpy as np
import numpy.typing as npt

Task = tuple[Any, int, Any, Any, int, Any, Any, bool, bool]

def limit(most: int, /) -> int: ...
def rows(
    task: Task,
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64] | None,
    energy: npt.NDArray[np.float64] | None,
) -> None: ...
def channels(
    task: Task, rows: npt.NDArray[np.int64], factors: npt.NDArray[np.float32], sums: npt.NDArray[np.float64]
) -> None: ...
def median(values: Any, /) -> float: ...
def arrays(
    task: Task,
    rows: npt.NDArray[np.int64],
    factors: npt.NDArray[np.float32],
    middle: npt.NDArray[np.float32],
    added: npt.NDArray[np.float32],
    /,
) -> None: ...
def row_numbers(
    sums: npt.NDArray[np.float64],
    parts: bool,
    tiny: float,
    numbers: npt.NDArray[np.float64],
    error: npt.NDArray[np.float64],
    cosine: npt.NDArray[np.float64],
    /,
) -> None: ...
def add_parts(parts: tuple[npt.NDArray[np.float64], ...], sums: npt.NDArray[np.float64], /) -> None: ...
def standing_out(
    energy: npt.NDArray[np.float64],
    size: npt.NDArray[np.float64],
    product: npt.NDArray[np.float64],
    rows: float,
    share: float,
    least: float,
    z: float,
    tiny: float,
    /,
) -> tuple[float, int, float, float, int, float]: ...

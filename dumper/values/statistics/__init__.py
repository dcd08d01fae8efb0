"""What the level ``stats`` keeps of values in the host's memory: a few numbers, in one pass.

Compiled where the package was installed with a C compiler (``_compiled.c``), else numpy (``reference``). Both add in
one order, which ``reference`` defines, and agree in every bit. Those of CUDA tensors are computed on their device
(``dumper/values/device_kernels``).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dumper.values.dtypes import name_of
from dumper.values.memory_rows import MemoryRows
from dumper.values.statistics import reference
from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.values.statistics import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None
_KINDS = (
    *("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e8m0fnu", "int8", "uint8", "bool", "int16", "uint16", "float64", "int32", "uint32", "int64", "uint64"),
)
_NUMBERS = {name: number for number, name in enumerate(_KINDS)}
INTO: int = _compiled.INTO if COMPILED else 0
"""Address of a C function ``(double *to, const void *from, size_t width, size_t height, size_t pitch, int kind)`` that
does what ``of_rows`` does; 0 where there is none."""
put_statistics = ctypes.PYFUNCTYPE(None, *[ctypes.c_size_t] * 5, ctypes.c_int)(INTO)
"""The same function, which must not be called where there is none. Keeps the interpreter lock."""


def kind_of(dtype: str) -> int | None:
    """What compiled code calls a type by its recorded name; None for others, and where there is no compiled code."""
    return _NUMBERS.get(dtype) if COMPILED else None


def of_rows(address: int, rows: MemoryRows, kind: int) -> bytes:
    """Seven little-endian float64, as ``STATISTICS`` names them, of elements in memory.

    ``kind``: of ``kind_of``. The interpreter lock is let go of where that takes a while.
    """
    return _compiled.statistics(address, rows.width, rows.height, rows.pitch, kind)


def of_array(array: npt.NDArray[Any]) -> bytes:
    """The same of an array of any recorded type and any strides; of complex numbers of their magnitudes."""
    if array.dtype.kind == "c":
        array = np.abs(array.astype(np.complex128))
    kind = kind_of(name_of(array.dtype))
    if kind is None:
        return reference.statistics(array)
    dense = np.ascontiguousarray(array)
    return of_rows(dense.ctypes.data, MemoryRows(dense.nbytes, 1, 0), kind)

"""CRC-32, the checksum of zip archives: zlib's, or ten times as fast where the compiled module and the processor's
carry-less multiplication are there."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.values.crc32 import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None and _compiled.is_fast()
_function: Callable[[Any, int], int] = _compiled.crc32 if COMPILED else zlib.crc32


def crc32(data: Any, value: int = 0) -> int:
    """The CRC-32 of a contiguous bytes-like object, behind bytes whose CRC-32 is ``value``."""
    return _function(data, value)

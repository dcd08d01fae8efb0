"""What the writer's thread does for every small value, in calls for many: compiled, where there is a compiler.

In Python a record costs some ten microseconds with the interpreter lock, and a hundred of them come together, for which
the model's thread has to wait. The compiled module looks at a record for a fraction of a microsecond and makes the
frames, with copies of the payloads and their checksums, without the lock. ``record_encoder`` is the definition of
``Framer``, and does what it leaves.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.writing.framing import _compiled
    from dumper.writing.framing._compiled import Framer
else:
    _compiled = load(f"{__name__}._compiled")
    Framer = getattr(_compiled, "Framer", None)

COMPILED = _compiled is not None


def in_python(queue: deque[Any], most: int) -> tuple[list[Any], int]:
    """The same without the compiled module."""
    slab, nbytes = queue[0][1], 0
    values: list[Any] = []
    while queue and len(values) < most and isinstance(queue[0], tuple) and queue[0][1] is slab:
        nbytes += queue[0][3]
        values.append(queue.popleft())
    return values, nbytes


take_values = in_python if _compiled is None else _compiled.take_values
"""``take_values(queue, most)`` takes values (``SmallValue``) off the head of a queue: the first and those behind it in
the same slab, at most so many. Returns them and their bytes."""

__all__ = ["COMPILED", "Framer", "in_python", "take_values"]

"""Frames of many small records in one call: compiled, where the package was installed with a C compiler.

In Python a record costs some ten microseconds with the interpreter lock, and a hundred of them come together, for which
the model's thread has to wait. The compiled module looks at a record for a fraction of a microsecond and makes the
frames, with copies of the payloads and their checksums, without the lock. ``record_encoder`` is its definition, and
does what it leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.writing.framing._compiled import Framer
else:
    Framer = getattr(load(f"{__name__}._compiled"), "Framer", None)

COMPILED = Framer is not None

__all__ = ["COMPILED", "Framer"]

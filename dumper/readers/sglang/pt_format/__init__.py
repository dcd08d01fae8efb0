"""The two formats that a ``.pt`` file is made of: a zip archive, and in it a pickle of plain containers and tensors.

Compiled where the package was installed with a C compiler (``_compiled.c``), else ``archive`` and ``reference``, which
define them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumper.readers.sglang.pt_format import archive, reference
from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.readers.sglang.pt_format import _compiled
else:
    _compiled = load(f"{__name__}._compiled")

COMPILED = _compiled is not None

heads = archive.heads if _compiled is None else _compiled.heads
stamps = archive.stamps if _compiled is None else _compiled.stamps
part = archive.part if _compiled is None else _compiled.part
parts = archive.parts if _compiled is None else _compiled.parts
named = reference.named if _compiled is None else _compiled.named
unpickle = reference.unpickle if _compiled is None else _compiled.unpickle

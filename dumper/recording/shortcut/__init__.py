"""What records a tensor that comes as one came before: compiled, where the package was installed with a C compiler.

Between the kernels of a model the functions of the recording path are read from memory anew at each tap, which takes
several times as long as where calls follow one another. The compiled module does for such a tensor what ``Recorder``,
``Session``, ``ShortWay`` and ``Writer`` do, in one call; they are its definition, and do what it leaves to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensortap.compiled import load

if TYPE_CHECKING:
    from dumper.recording.shortcut._compiled import Shortcut
else:
    Shortcut = getattr(load(f"{__name__}._compiled"), "Shortcut", None)

COMPILED = Shortcut is not None

__all__ = ["COMPILED", "Shortcut"]

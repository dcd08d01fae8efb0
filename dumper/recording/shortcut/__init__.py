"""What records a tensor that comes as one came before: compiled, where the package was installed with a C compiler.

Between the kernels of a model the functions of the recording path are read from memory anew at each tap, which takes
several times as long as where calls follow one another. The compiled module does for such a tensor what ``Recorder``,
``Session``, ``ShortWay`` and ``Writer`` do, in one call; they are its definition, and do what it leaves to them.
"""

from __future__ import annotations

from tensortap.compiled import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from dumper.recording.shortcut._compiled import Shortcut, TapCall, Way


class _NoWay:
    """Where there is no shortcut."""

    __slots__ = ()

    def take(self, shortcut: None, compiling: dict[str, Any], tags: type, /) -> None:
        """There is nothing to keep."""


class _PlainCall:
    """All calls are those of the class that derives from this."""

    __slots__ = ("fired",)
    fired: int

    def __new__(cls, way: _NoWay, source: Any, /) -> Self:
        made = super().__new__(cls)
        made.fired = 0
        return made


if not TYPE_CHECKING:
    _compiled = load(f"{__name__}._compiled")
    Shortcut = getattr(_compiled, "Shortcut", None)
    Way, TapCall = (_NoWay, _PlainCall) if _compiled is None else (_compiled.Way, _compiled.TapCall)

COMPILED = Shortcut is not None

__all__ = ["COMPILED", "Shortcut", "TapCall", "Way"]

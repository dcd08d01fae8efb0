"""Where values come from: what is the same for every value that is recorded at one place."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

_MOST_REMEMBERED = 50_000
"""Sources that are remembered; names that count without end must not fill the memory."""


class Source:
    """The name of a value and how it is to be recorded; made once per place by ``of``, and compared by identity.

    A plain class with slots: it is hashed for every record.
    """

    __slots__ = ("grad", "gradient_dims", "level", "name", "stream", "tap")

    _known: ClassVar[dict[tuple[str, str | None, bool, str | None, str, str | None], Source]] = {}
    _of_names: ClassVar[dict[str, Source]] = {}

    def __init__(
        self,
        name: str,
        level: str | None,
        grad: bool,
        tap: str | None,
        stream: str,
        gradient_dims: str | None = None,
    ) -> None:
        self.name = name
        self.level = level
        """The level that was asked for here, as text; None leaves it to the settings."""
        self.grad = grad
        """Whether the gradient is to be recorded too."""
        self.tap = tap
        """Id of the tap; None for a call in the program's own code."""
        self.stream = stream
        """``value`` or ``grad``."""
        self.gradient_dims = gradient_dims
        """Dims of the gradient; None: those of the value."""

    @classmethod
    def of(
        cls,
        name: str,
        level: str | None = None,
        grad: bool = False,
        tap: str | None = None,
        stream: str = "value",
        gradient_dims: str | None = None,
    ) -> Source:
        """The one source like this."""
        key = (name, level, grad, tap, stream, gradient_dims)
        try:
            source = cls._known.get(key)
        except TypeError:
            # A name or a level that cannot be hashed is no text, and the value is refused later, where that is counted.
            return cls(name, level, grad, tap, stream, gradient_dims)
        if source is None:
            if len(cls._known) >= _MOST_REMEMBERED:
                cls._known.clear()
            source = cls._known[key] = cls(name, level, grad, tap, stream, gradient_dims)
        return source

    @classmethod
    def named(cls, name: str) -> Source:
        """The source of a value of which nothing but the name is said; found faster than by ``of``."""
        try:
            return cls._of_names[name]
        except (KeyError, TypeError):
            source = cls.of(name)
        if isinstance(name, str):
            if len(cls._of_names) >= _MOST_REMEMBERED:
                cls._of_names.clear()
            cls._of_names[name] = source
        return source

    def part(self, name: str) -> Source:
        """The source of one part of a nested value, under a name of its own."""
        return Source.of(name, self.level, self.grad, self.tap, self.stream, self.gradient_dims)

    def value_alone(self) -> Source:
        """The same source without a wish for the gradient."""
        return Source.of(self.name, self.level, False, self.tap, self.stream)

    def gradient(self) -> Source:
        """The source of the gradient of the value."""
        return Source.of(self.name, None, False, self.tap, "grad")

"""Targets in modules that may come into being while a process runs: model code that is copied beside its weights,
modules that a program writes. Imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class LateTarget:
    """A target, perhaps with globs, and a digest of the configs that are about it."""

    def __init__(self, text: str, digest: str) -> None:
        self.text = text
        self.digest = digest
        self._parts = text.split(".")

    def may_be_in(self, module: str, read: Callable[[], bytes]) -> bool:
        """Whether the target may name a function in a module whose source is what ``read`` gives."""
        names = module.split(".")
        if len(names) >= len(self._parts) or not _alike(names[0], self._parts[0]):
            return False
        if not all(map(_alike, names, self._parts)):
            return False
        source = read()
        return all(literal(part).encode() in source for part in self._parts[len(names) :])


def _alike(name: str, pattern: str) -> bool:
    if not any(character in pattern for character in "*?["):
        return name == pattern
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def literal(part: str) -> str:
    """The longest piece of a part of a target that has to occur as it stands."""
    if "[" in part:
        return ""
    return max(part.replace("?", "*").split("*"), key=len)

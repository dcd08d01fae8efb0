"""Text of others on a terminal: configs and sources may hold characters that move the cursor or hide what follows."""

from __future__ import annotations

import sys


def say(text: str, *, error: bool = False) -> None:
    """Print lines, on stderr if it is an error; what is not printable is escaped (``\\x1b``)."""
    print(escaped(text), file=sys.stderr if error else sys.stdout)


def escaped(text: str) -> str:
    """The text with line breaks and tabs as they are, and what else is not printable as Python writes it."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )

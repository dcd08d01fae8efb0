"""Text of others on a terminal: configs and sources may hold characters that move the cursor or hide what follows."""

from __future__ import annotations

import contextlib
import os
import sys


def say(text: str, *, error: bool = False) -> None:
    """Print lines, on stderr if it is an error; what is not printable is escaped (``\\x1b``)."""
    print(escaped(text), file=sys.stderr if error else sys.stdout)


def drop_output() -> None:
    """Let what is still to be written to standard output go nowhere; the interpreter flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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

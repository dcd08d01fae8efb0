"""Text of others, for a terminal or a log: what is in a recording may have been made to deceive who reads it."""

from __future__ import annotations


def printable(text: object) -> str:
    """The text with every character escaped that moves the cursor, ends a line, hides or turns around what follows:
    ``\\x1b``, ``\\n``, ``\\u202e``. All else, of any script, stays as it is."""
    told = str(text)
    if told.isprintable():
        return told
    return "".join(character if character.isprintable() else _escaped(character) for character in told)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

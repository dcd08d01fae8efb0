"""Text of others, for a terminal or a log: it may have been made to deceive who reads it, by characters that move the
cursor or hide what follows."""

from __future__ import annotations


def printable(text: object) -> str:
    """The text with every character escaped that moves the cursor, ends a line, hides or turns around what follows:
    ``\\x1b``, ``\\n``, ``\\u202e``. All else, of any script, stays as it is."""
    told = str(text)
    if told.isprintable():
        return told
    return "".join(character if character.isprintable() else _escaped(character) for character in told)


def printable_lines(text: str) -> str:
    """The same of several lines: line breaks and tabs stay as they are."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

"""Text of other people on a terminal: names, tags, paths and messages, with what controls a terminal made visible."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of Unicode: controls, invisible formatting (which turns text around), surrogates, separators of lines."""


def printable(text: str) -> str:
    """``text`` on one line, with control characters as escapes: ``\\x1b[31m`` instead of red."""
    if text.isprintable():
        return text
    return "".join(_escaped(one) if unicodedata.category(one) in _HIDDEN else one for one in text)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")

"""The regular expressions that people give: one function compiles them all, with an engine whose time is linear."""

from __future__ import annotations

from functools import lru_cache

from comparator.errors import ComparatorError
from dumper.rules.expressions import ExpressionError, Pattern, compile_pattern

LONGEST_PATTERN = 10_000
"""Characters."""


@lru_cache(maxsize=1024)
def compiled(pattern: str, where: str = "a pattern") -> Pattern:
    """A regular expression in RE2's syntax; ComparatorError says which argument holds a bad one."""
    if len(pattern) > LONGEST_PATTERN:
        raise ComparatorError(f"{where}: a pattern of {len(pattern)} characters; {LONGEST_PATTERN} is the most")
    try:
        return compile_pattern(pattern)
    except ExpressionError as error:
        raise ComparatorError(f"{where}: {pattern!r} is not a regular expression: {error}") from None


def search(pattern: str, text: str) -> bool:
    """Whether the pattern is found in ``text``."""
    return compiled(pattern).search(text) is not None


def fullmatch(pattern: str, text: str) -> bool:
    """Whether the pattern matches the whole of ``text``."""
    return compiled(pattern).fullmatch(text) is not None

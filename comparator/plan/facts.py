"""What a plan says of a pair before any of its values is read."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class TokenNumbers(Struct, frozen=True, array_like=True):
    """How many tokens were compared and what only one side had, by reason."""

    matched: int
    only_baseline: Mapping[str, int]
    only_target: Mapping[str, int]
    dropped_baseline: int
    dropped_target: int
    recorded_baseline: int = 0
    """Rows of the whole tensor, padding included."""
    recorded_target: int = 0


class Remark(Struct, frozen=True, array_like=True):
    """Something that was found on the way; ``name`` is one of ``comparator.messages``."""

    name: str
    message: str

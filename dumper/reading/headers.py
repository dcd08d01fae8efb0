"""What ranks say of themselves, and what follows from all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from dumper.reading.protocol import Header, Problem, TapCoverage

MOST_NAMED = 20
"""Ranks, or records, that one message names."""


class RankHeader(Struct, frozen=True):
    """What a rank says of itself, as read from its file."""

    rank: int
    world_size: int
    parallel: Mapping[str, tuple[int, int]]
    """Axis name to ``(rank, size)``."""
    versions: Mapping[str, str]
    framework: str | None
    settings: Mapping[str, str]
    patch_config: Mapping[str, Any] | None
    """``paths``, ``sha256`` and ``texts`` of the patch configs that were active, None without any."""


def silent_taps(taps: Iterable[TapCoverage]) -> tuple[str, ...]:
    """Taps that fired on no rank, with their place in the source. Taps of steps are none that record."""
    fired: dict[str, int] = {}
    places: dict[str, str] = {}
    installed: set[str] = set()
    for tap in taps:
        if tap.kind == "dump":
            fired[tap.id] = fired.get(tap.id, 0) + tap.fired
            places[tap.id] = f"{tap.id} ({tap.file}:{tap.line})" if tap.file else tap.id
            if tap.installed:
                installed.add(tap.id)
    return tuple(
        places[tap] + ("" if tap in installed else ", never imported") for tap, count in fired.items() if not count
    )


def largest_world(headers: Mapping[int, Header]) -> int:
    """The largest world size that a rank knows of, and at least the number of ranks there are; headers by rank."""
    return max((max(header.world_size, rank + 1) for rank, header in headers.items()), default=0)


def ranks_without_file(headers: Mapping[int, Header]) -> tuple[int, ...]:
    """Ranks of the world that have no header; headers by rank."""
    return tuple(rank for rank in range(largest_world(headers)) if rank not in headers)


def ranks_missing(missing: Sequence[int], world_size: int, there: Sequence[int]) -> list[Problem]:
    """One problem for each missing rank, one for all where they are many."""
    present = ranges(there)
    if len(missing) <= MOST_NAMED:
        return [
            Problem("missing_rank", f"rank {rank} of {world_size} has no file (there are: {present})")
            for rank in missing
        ]
    message = f"{len(missing)} of {world_size} ranks have no file: {ranges(missing)} (there are: {present})"
    return [Problem("missing_rank", message)]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short: ``0-3, 7``; the first few parts where there are many."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return ", ".join(texts[:MOST_NAMED]) + (", …" if len(texts) > MOST_NAMED else "")

"""What ranks say of themselves, and what follows from all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dumper.reading.protocol import Header, TapCoverage


@dataclass(frozen=True)
class RankHeader:
    """What a rank says of itself, as read from its file."""

    rank: int
    world_size: int
    parallel: Mapping[str, tuple[int, int]]
    """Axis name to ``(rank, size)``."""
    versions: Mapping[str, str]
    framework: str | None
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

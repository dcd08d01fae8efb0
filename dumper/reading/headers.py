"""What a rank says of itself and of its taps, read from frames whose content may be anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dumper.reading.protocol import Header, TapCoverage

LARGEST_WORLD = 1 << 20
"""Ranks; a larger world size is not believed."""
_Metas = Sequence[Mapping[str, Any]]


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
    for tap in taps:
        if tap.kind == "dump":
            fired[tap.id] = fired.get(tap.id, 0) + tap.fired
            places[tap.id] = f"{tap.id} ({tap.file}:{tap.line})" if tap.file else tap.id
    return tuple(places[tap] for tap, count in fired.items() if not count)


def read_header(rank: int, headers: _Metas, configs: _Metas) -> RankHeader:
    """The header of a rank; parts that make no sense are left out."""
    meta = headers[0] if headers else {}
    world_size = meta.get("world_size")
    framework = meta.get("framework")
    return RankHeader(
        rank=rank,
        world_size=world_size if isinstance(world_size, int) and 0 < world_size <= LARGEST_WORLD else 1,
        parallel={
            str(axis): (place[0], place[1])
            for axis, place in _map(meta.get("parallel")).items()
            if isinstance(place, list) and len(place) == 2 and all(isinstance(number, int) for number in place)
        },
        versions={str(name): str(version) for name, version in _map(meta.get("versions")).items()},
        framework=framework if isinstance(framework, str) else None,
        patch_config=configs[0] if configs else None,
    )


def largest_world(headers: Mapping[int, Header]) -> int:
    """The largest world size that a rank knows of, and at least the number of ranks there are; headers by rank."""
    return max((max(header.world_size, rank + 1) for rank, header in headers.items()), default=0)


def ranks_without_file(headers: Mapping[int, Header]) -> tuple[int, ...]:
    """Ranks of the world that have no header; headers by rank."""
    return tuple(rank for rank in range(largest_world(headers)) if rank not in headers)


def read_coverage(
    rank: int, taps: _Metas, coverage: _Metas, recorded: Mapping[str, int], steps: int
) -> list[TapCoverage]:
    """The taps of a rank and how often they fired: as the process counted at its end, and where it had no end, as
    there are records (``recorded``, by tap). A tap of kind ``step`` fires once for each step."""
    fired = _map(coverage[-1].get("fired")) if coverage else dict(recorded)
    found: dict[str, TapCoverage] = {}
    for meta in taps:
        entries = meta.get("taps")
        for tap in entries if isinstance(entries, list) else ():
            if not isinstance(tap, dict) or not isinstance(tap.get("id"), str):
                continue
            kind = str(tap.get("kind", "dump"))
            known = fired.get(tap["id"], 0)
            if kind == "step":
                known = steps  # step() is called directly, not through its tap
            found[tap["id"]] = TapCoverage(
                id=tap["id"],
                name=str(tap.get("name", "")),
                rank=rank,
                file=str(tap.get("file", "")),
                line=tap["line"] if isinstance(tap.get("line"), int) else 0,
                fired=known if isinstance(known, int) else 0,
                kind=kind,
                inputs=_texts(tap.get("inputs")),
                operation=tap["operation"] if isinstance(tap.get("operation"), str) else None,
            )
    return list(found.values())


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()

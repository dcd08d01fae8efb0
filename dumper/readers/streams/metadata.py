"""Headers and taps of a rank, read from frames whose content may be anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dumper.format.run_files import MOST_RANKS
from dumper.reading.headers import RankHeader
from dumper.reading.protocol import GraphCoverage, TapCoverage

_Metas = Sequence[Mapping[str, Any]]


def read_header(rank: int, headers: _Metas, configs: _Metas, added: _Metas = ()) -> RankHeader:
    """The header of a rank; parts that make no sense are left out. ``added``: axes that became known later."""
    meta = headers[0] if headers else {}
    world_size = meta.get("world_size")
    framework = meta.get("framework")
    return RankHeader(
        rank=rank,
        world_size=world_size if isinstance(world_size, int) and 0 < world_size <= MOST_RANKS else 1,
        parallel={
            str(axis): (place[0], place[1])
            for part in (*added, meta)
            for axis, place in _map(part.get("parallel")).items()
            if isinstance(place, list) and len(place) == 2 and all(isinstance(number, int) for number in place)
        },
        versions={str(name): str(version) for name, version in _map(meta.get("versions")).items()},
        framework=framework if isinstance(framework, str) else None,
        settings={str(name): str(value) for name, value in _map(meta.get("settings")).items()},
        patch_config=configs[0] if configs else None,
    )


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
            installed = tap.get("planned") is not True
            if not installed and tap["id"] in found:
                continue
            if kind == "step" and installed and not known:
                known = steps  # step() was called directly, not through its tap
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
                installed=installed,
            )
    return list(found.values())


def read_graph_coverage(rank: int, coverage: _Metas) -> GraphCoverage | None:
    """What a rank recorded of CUDA graphs; None where it had none, or no end."""
    fields = _map(coverage[-1].get("graphs")) if coverage else {}
    if not fields:
        return None
    entries = fields.get("left_out")
    left_out = [_map(entry) for entry in entries] if isinstance(entries, list) else []
    return GraphCoverage(
        rank=rank,
        left_out=tuple(
            (str(entry.get("name", "")), str(entry.get("reason", "")), _count(entry.get("captures")))
            for entry in left_out
        ),
        **{name: _count(fields.get(name)) for name in _GRAPH_COUNTS},
    )


def read_broken_off(coverage: _Metas) -> int | None:
    """The step in whose middle a rank ended in order; None where it did not."""
    step = coverage[-1].get("broken_off") if coverage else None
    return step if isinstance(step, int) else None


_GRAPH_COUNTS = (
    "captured", "replays", "values", "silent_graphs", "silent_replays", "unknown_captures", "left_out_values",
)  # fmt: skip


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()

"""Where the files of one bundle say that their ranks stand, and whether dims say all that must be known of them.

These are the rules of SGLang's comparator, for tensors that are joined as their rows lie.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from comparator.errors import PairError
from dumper.reading.named_files import PARALLEL_KEYS, NamedFile
from tensortap.dims import Dims

RECOMPUTED = "recompute_pseudo"
"""Axis that tells a forward pass from its repetition for activation checkpointing."""
KNOWN_AXES = frozenset(
    ("tp", "cp", "ep", "sp", "dp", "etp", "edp", "attn_tp", "attn_dp", "moe_ep", "moe_tp", "moe_dp", RECOMPUTED)
)
"""Axes that SGLang's comparator knows; it asks for a declaration of those of size over 1."""

Place = Mapping[str, tuple[int, int]]
"""Axis to ``(rank, size)``, axes of size 1 left out."""


def active_place(file: NamedFile, also: Collection[str] = ()) -> Place:
    """The axes of size over 1 that a file's metadata places it on; ``also`` names axes beyond the known ones."""
    meta = file.meta
    filled = [
        meta[key]
        for key in PARALLEL_KEYS
        if isinstance(meta.get(key), dict) and meta[key] and not any(name.endswith("_error") for name in meta[key])
    ]
    if len(filled) > 1:
        raise PairError(f"{file.filename} holds both {' and '.join(PARALLEL_KEYS)}; one of them must go")
    info = filled[0] if filled else {}
    place: dict[str, tuple[int, int]] = {}
    for axis in sorted({*KNOWN_AXES, *also}):
        source = info if info.get(f"{axis}_rank") is not None else meta
        at, size = source.get(f"{axis}_rank"), source.get(f"{axis}_size")
        if isinstance(at, int) and isinstance(size, int) and size > 1:
            if not 0 <= at < size:
                raise PairError(f"{file.filename} says that it is {axis} rank {at} of {size}")
            place[axis] = (at, size)
    return place


def place_key(file: NamedFile) -> Hashable:
    """What ``active_place`` looks at: equal for files of one place."""
    found: list[Hashable] = []
    for key, value in file.own_meta.items():
        if key in PARALLEL_KEYS and isinstance(value, dict):
            if {*map(type, value.values())} <= _INTEGER:  # as SGLang's dumper writes them
                found.append((key, *value.items()))
            else:
                found.append((key, *((name, _plain(one)) for name, one in value.items())))
        elif isinstance(key, str) and key.endswith(("_rank", "_size")):
            found.append((key, _plain(value)))
    return tuple(found)


_INTEGER = {int}


def _plain(value: Any) -> Hashable:
    """As text where a file holds what cannot be a key."""
    return value if type(value) is int else repr(value)


def check_declared(dims: Dims, places: Sequence[Place], data_parallel_axis: str) -> tuple[list[str], set[str]]:
    """The replicated axes in the order in which they are picked, and the axes that split dimensions.

    Raises PairError when dims contradict the places, leave an axis unexplained, or ranks are missing.
    """
    active = {axis for place in places for axis in place}
    split = {modifier.axis for dimension in dims.dimensions for modifier in dimension.modifiers} & active
    replicated = set(dims.replicated) | ({RECOMPUTED} & active)
    absent = sorted(replicated - active)
    if absent:
        raise PairError(
            f"dims {dims.text!r} declare {', '.join(absent)} replicated, which no rank is split over "
            f"(there are: {', '.join(sorted(active)) or 'none'})"
        )
    if replicated & split:
        raise PairError(f"dims {dims.text!r} say that {', '.join(sorted(replicated & split))} is split and replicated")
    _check_independent(sorted(replicated), places)
    _check_explained(dims, active, split, replicated, places, data_parallel_axis)
    _check_complete(split | replicated, places)
    return sorted(replicated), split


def _check_independent(replicated: Sequence[str], places: Sequence[Place]) -> None:
    for axis in replicated:
        for other in replicated:
            if axis != other and _follows(places, axis, other):
                raise PairError(
                    f"{axis} and {other} are both declared replicated, and {axis} determines {other}: they are not "
                    "orthogonal",
                    hint=f"leave out {other}:replicated",
                )


def _check_explained(
    dims: Dims, active: set[str], split: set[str], replicated: set[str], places: Sequence[Place], data_parallel: str
) -> None:
    open_axes = active - split - replicated
    implied = {axis for axis in open_axes if any(_follows(places, parent, axis) for parent in replicated | split)}
    declared = split | replicated | implied | {data_parallel}
    left = {axis for axis in active - declared if not _follows_jointly(places, declared, axis)}
    if left:
        raise PairError(
            f"ranks differ in {', '.join(sorted(left))}, which dims {dims.text!r} do not mention (not declared)",
            hint=f"write NAME[{min(left)}] for the dimension that is split, or '# {min(left)}:replicated'",
        )


def _check_complete(axes: set[str], places: Sequence[Place]) -> None:
    for axis in sorted(axes):
        if any(axis not in place for place in places):
            raise PairError(f"some ranks do not say where they stand on {axis}")
        sizes = {place[axis][1] for place in places}
        if len(sizes) > 1:
            raise PairError(f"ranks give several sizes of {axis}: {', '.join(map(str, sorted(sizes)))}")
        (size,) = sizes
        missing = sorted(set(range(size)) - {place[axis][0] for place in places})
        if missing:
            raise PairError(f"{axis} rank {', '.join(map(str, missing))} (of {size}) recorded nothing here")


def _follows(places: Sequence[Place], parent: str, child: str) -> bool:
    """Whether the rank on ``parent`` determines that on ``child``."""
    seen: dict[int, int] = {}
    return all(
        seen.setdefault(place[parent][0], place[child][0]) == place[child][0]
        for place in places
        if parent in place and child in place
    )


def _follows_jointly(places: Sequence[Place], parents: set[str], child: str) -> bool:
    """Whether the ranks on all ``parents`` together determine that on ``child``."""
    known = sorted(parent for parent in parents if any(parent in place for place in places))
    seen: dict[tuple[int, ...], int] = {}
    for place in places:
        if child not in place:
            continue
        if not known or any(parent not in place for parent in known):
            return False
        key = tuple(place[parent][0] for parent in known)
        if seen.setdefault(key, place[child][0]) != place[child][0]:
            return False
    return bool(seen)

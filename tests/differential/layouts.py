"""Pretend parallel layouts, and how a logical tensor lies on their ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Place = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class World:
    """The ranks of one side: for each the axes it is placed on."""

    label: str
    places: tuple[Place, ...]
    key: str = "sglang_parallel_info"

    def size(self, axis: str) -> int:
        return self.places[0].get(axis, (0, 1))[1]


def _grid(label: str, key: str = "sglang_parallel_info", **sizes: int) -> World:
    """Ranks counted with the last axis fastest."""
    count = int(np.prod(list(sizes.values()))) if sizes else 1
    places = []
    for rank in range(count):
        place: Place = {}
        left = rank
        for axis in reversed(sizes):
            place[axis] = (left % sizes[axis], sizes[axis])
            left //= sizes[axis]
        places.append(place)
    return World(label, tuple(places), key)


def _with(world: World, **copies: str) -> World:
    """The world with axes that are the same as others."""
    places = tuple({**place, **{new: place[old] for new, old in copies.items()}} for place in world.places)
    return World(world.label, places, world.key)


def _attention(world: World, tensor: int) -> World:
    """``tp`` split into ``attn_dp`` and ``attn_tp``."""
    places = []
    for place in world.places:
        at, size = place["tp"]
        places.append({**place, "attn_tp": (at % tensor, tensor), "attn_dp": (at // tensor, size // tensor)})
    return World(world.label, tuple(places), world.key)


WORLDS: tuple[World, ...] = (
    _grid("single"),
    _grid("tp2", tp=2),
    _grid("tp4", tp=4),
    _with(_grid("tp2 attn", tp=2), attn_tp="tp", moe_tp="tp"),
    _with(_grid("tp2 moe_ep", tp=2), attn_tp="tp", moe_ep="tp"),
    _attention(_grid("tp4 attn_dp2", tp=4), 2),
    _grid("cp2", cp=2),
    _grid("tp2 cp2", cp=2, tp=2),
    _grid("pp2 tp2", pp=2, tp=2),
    _with(_grid("tp2 sp", "megatron_parallel_info", tp=2), sp="tp"),
    _with(_grid("tp2 cp2 sp", "megatron_parallel_info", cp=2, tp=2), sp="tp"),
    _with(_grid("tp2 ep", "megatron_parallel_info", tp=2), ep="tp"),
    _grid("ep2 etp2", "megatron_parallel_info", ep=2, etp=2),
    _grid("dp2", "megatron_parallel_info", dp=2),
    _grid("dp2 tp2", "megatron_parallel_info", dp=2, tp=2),
)


@dataclass(frozen=True)
class Split:
    """How one tensor lies on a world."""

    dims: str
    shards: tuple[Array, ...]
    """One per rank."""


def split(logical: Array, names: list[str], world: World, rng: np.random.Generator) -> Split:
    """Spread a tensor over a world in a random way that its dims describe.

    ``names`` are names of dimensions, ``a*b`` for a fused one.
    """
    axes = [axis for axis in ("cp", "tp", "attn_tp", "sp", "ep", "etp", "moe_tp", "moe_ep") if world.size(axis) > 1]
    independent = [axis for axis in axes if axis not in ("sp",)]
    chosen: dict[str, tuple[int, str]] = {}
    replicated: set[str] = set()
    taken: set[tuple[int, ...]] = set()
    for axis in rng.permutation(independent).tolist() if independent else []:
        signature = tuple(place[axis][0] for place in world.places)
        if signature in taken:
            continue
        taken.add(signature)
        dimension, how = _choose(logical, names, axis, world.size(axis), rng)
        if how == "replicated":
            replicated.add(axis)
        else:
            chosen[axis] = (dimension, how)
    if "sp" in axes and "tp" in replicated and rng.random() < 0.5:
        position = next((i for i, name in enumerate(names) if name in ("s", "t")), None)
        if position is not None and logical.shape[position] % (world.size("sp") * 4) == 0:
            replicated.discard("tp")
            chosen["sp"] = (position, "")
    written = _write(names, chosen, replicated)
    return Split(written, tuple(_shards(logical, names, chosen, world, rng)))


def _choose(logical: Array, names: list[str], axis: str, size: int, rng: np.random.Generator) -> tuple[int, str]:
    options: list[tuple[int, str]] = [(0, "replicated"), (0, "replicated")]
    for position, name in enumerate(names):
        if name == "1":
            continue
        if name == "s" and axis == "cp" and logical.shape[position] % (2 * size) == 0:
            options += [(position, "zigzag"), (position, "natural"), (position, "")]
        elif name != "b" and axis != "cp" and logical.shape[position] % (size * 4) == 0:
            options += [(position, ""), (position, "sharded")]
    if axis != "cp":
        options.append((len(names) - 1, "partial"))
    return options[int(rng.integers(len(options)))]


def _write(names: list[str], chosen: dict[str, tuple[int, str]], replicated: set[str]) -> str:
    parts = []
    for position, name in enumerate(names):
        label = f"({name})" if "*" in name else name
        modifiers = [axis + (f":{how}" if how else "") for axis, (at, how) in chosen.items() if at == position]
        parts.append(label + (f"[{','.join(modifiers)}]" if modifiers else ""))
    declared = " ".join(f"{axis}:replicated" for axis in sorted(replicated))
    return " ".join(parts) + (f" # {declared}" if declared else "")


def _shards(
    logical: Array, names: list[str], chosen: dict[str, tuple[int, str]], world: World, rng: np.random.Generator
) -> list[Array]:
    partial = [axis for axis, (_, how) in chosen.items() if how == "partial"]
    summands: dict[tuple[int, ...], Array] = {}
    counts = [world.size(axis) for axis in partial]
    total = logical
    for index in list(np.ndindex(*counts))[1:] if partial else []:
        piece = rng.standard_normal(logical.shape).astype(np.float32)
        summands[index] = piece
        total = total - piece
    summands[(0,) * len(partial)] = total
    found = []
    for place in world.places:
        array = summands[tuple(place[axis][0] for axis in partial)]
        for axis, (position, how) in chosen.items():
            if how != "partial":
                array = _piece(array, position, place[axis], how)
        found.append(np.ascontiguousarray(array))
    return found


def _piece(array: Array, position: int, place: tuple[int, int], how: str) -> Array:
    at, size = place
    if how == "zigzag":
        chunks = np.split(array, 2 * size, axis=position)
        return np.concatenate([chunks[at], chunks[2 * size - 1 - at]], axis=position)
    return np.split(array, size, axis=position)[at]

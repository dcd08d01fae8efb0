"""Scenarios with what SGLang's dumper records of every batch: several sequences, context parallelism, ``smart``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.differential.layouts import World
from tests.differential.scenarios import Dump, Scenario

_WIDTH = 16
_WORLDS = (
    World("single", ({},)),
    World("tp2", tuple({"tp": (rank, 2)} for rank in range(2))),
    World("cp2", tuple({"cp": (rank, 2)} for rank in range(2))),
    World("cp2 tp2", tuple({"cp": (rank // 2, 2), "tp": (rank % 2, 2)} for rank in range(4))),
)

Array = npt.NDArray[Any]
Batch = list[Array]
"""The token ids of the sequences of one pass."""


def make_batch_scenario(seed: int, folder: Path) -> Scenario:
    """Both sides prefill the same sequences, each in one pass, in batches of their own."""
    rng = np.random.default_rng([20_261, seed])
    lengths = (rng.integers(1, 4, int(rng.integers(1, 5))) * 4).tolist()
    sequences = [rng.integers(1, 300, length) for length in lengths]
    same_batches = bool(rng.random() < 0.5)
    first = _batches(sequences, rng)
    sides = [first, first if same_batches else _batches(sequences, rng)]
    if rng.random() < 0.2:
        sides[1] = sides[1][:-1] or sides[1]
    noise = float(rng.choice([0.0, 0.0, 1e-6, 1e-2, 0.5]))
    worlds = [_WORLDS[int(rng.integers(len(_WORLDS)))] for _ in sides]
    zigzag = bool(rng.random() < 0.8)
    integers_differ = bool(rng.random() < 0.1)
    for number, (side, batches, world) in enumerate(zip(("baseline", "target"), sides, worlds, strict=True)):
        path = folder / side
        path.mkdir(parents=True)
        dump = Dump(path, world)
        for step, batch in enumerate(batches):
            shift = 1 if integers_differ and number == 1 else 0
            _write_pass(dump, step, batch, zigzag, noise * number, shift, rng)
    flags = _flags(rng)
    facts = (
        f"{worlds[0].label} against {worlds[1].label}",
        f"same batches: {same_batches}, noise {noise}",
        str(lengths),
    )
    return Scenario(seed, folder / "baseline", folder / "target", flags, facts)


def _batches(sequences: list[Array], rng: np.random.Generator) -> list[Batch]:
    order = rng.permutation(len(sequences)).tolist()
    cuts = sorted(set(rng.integers(1, len(order) + 1, 2).tolist()))
    return [[sequences[index] for index in part] for part in np.split(np.array(order), cuts) if len(part)]


def _write_pass(
    dump: Dump, step: int, batch: Batch, zigzag: bool, noise: float, shift: int, rng: np.random.Generator
) -> None:
    hidden = np.concatenate([_hidden(ids) for ids in batch])
    hidden = hidden + (rng.standard_normal(hidden.shape) * noise).astype(np.float32)
    lengths = [len(ids) for ids in batch]
    ids = np.concatenate(batch) + shift
    positions = np.concatenate([np.arange(length) for length in lengths])
    for rank, place in enumerate(dump.world.places):
        rows = _rows(lengths, place.get("cp", (0, 1)), zigzag)
        at, size = place.get("tp", (0, 1))
        columns = slice(at * _WIDTH // size, (at + 1) * _WIDTH // size)
        how = "zigzag" if zigzag else "natural"
        split = f"t[cp:{how}]" if "cp" in place else "t"
        tags = {"recompute_status": "disabled"}
        aux_dims = split + (" # tp:replicated" if "tp" in place else "") if "cp" in place and not zigzag else None
        dump.write(step, rank, "input_ids", torch.from_numpy(ids[rows]), aux_dims, **tags)
        dump.write(step, rank, "positions", torch.from_numpy(positions[rows]), aux_dims, **tags)
        dump.write(step, rank, "seq_lens", torch.tensor(lengths), **tags)
        dump.write(
            step, rank, "rids", [f"{dump.path.name}-{batch_ids[0]}-{len(batch_ids)}-{step}" for batch_ids in batch]
        )
        value = torch.from_numpy(hidden[rows][:, columns].copy())
        dump.write(step, rank, "attn_output", value, f"{split} h[tp]", layer_id=0, **tags)


def _hidden(ids: Array) -> Array:
    """Values that tell a token and all before it."""
    steps = np.cumsum(ids)[:, None] * np.linspace(0.01, 0.2, _WIDTH)[None, :]
    found: Array = np.sin(steps).astype(np.float32)
    return found


def _rows(lengths: list[int], place: tuple[int, int], zigzag: bool) -> Array:
    at, size = place
    rows, start = [], 0
    for length in lengths:
        own = np.arange(start, start + length)
        if zigzag and size > 1:
            chunks = np.array_split(own, 2 * size)
            own = np.concatenate([chunks[at], chunks[2 * size - 1 - at]])
        else:
            own = np.array_split(own, size)[at]
        rows.append(own)
        start += length
    return np.concatenate(rows)


def _flags(rng: np.random.Generator) -> tuple[str, ...]:
    options: list[tuple[str, ...]] = [
        ("--preset", "sglang_megatron"),
        ("--preset", "sglang_megatron", "--token-aligner", "smart"),
        ("--preset", "sglang_megatron", "--token-aligner", "smart", "--diff-threshold", "1e-8"),
        ("--preset", "sglang_megatron", "--token-aligner", "smart", "--end-step", "0"),
        ("--token-aligner", "concat_steps"),
        ("--preset", "sglang_megatron", "--end-step", "0", "--filter", "attn_output|seq_lens"),
        (),
    ]
    chosen = options[int(rng.integers(len(options)))]
    allowed = ("--allow-failed-pattern", "rids|input_ids|positions|seq_lens") if rng.random() < 0.5 else ()
    return (*chosen, *allowed)

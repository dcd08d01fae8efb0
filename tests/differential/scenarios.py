"""Seeded scenarios: two dumps in SGLang's file format, alike or with faults, and flags to compare them with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.differential.layouts import WORLDS, World, split

_SHAPES: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = (
    (("t", "h"), (8, 16)),
    (("t", "num_heads*head_dim"), (8, 32)),
    (("t", "num_heads", "head_dim"), (8, 8, 4)),
    (("b", "s", "h"), (2, 8, 16)),
    (("s", "b", "h"), (8, 2, 16)),
    (("t", "1", "h"), (8, 1, 16)),
    (("num_experts", "h"), (8, 16)),
    (("t",), (16,)),
)
_DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float16, torch.float64)
_RARE_DTYPES = (torch.float8_e4m3fn, torch.int32, torch.uint8, torch.bool)
_FAULTS = ("none", "none", "none", "tiny", "small", "large", "scale", "nan", "inf", "rank", "shape", "zero")


@dataclass
class Dump:
    """Writes one directory as SGLang's dumper does."""

    path: Path
    world: World
    index: int = 0
    layout: str = "known"
    """``absent``, ``error`` (the engine was asked too early) or ``both`` keys of parallel layouts."""
    recompute: int | None = None
    """Within activation checkpointing: 0 in the first forward pass, 1 in the repeated one."""

    def write(self, step: int, rank: int, name: str, value: Any, dims: str | None = None, **tags: Any) -> Path:
        self.index += 1
        parts = {"step": step, "rank": rank, "dump_index": self.index, "name": name, **tags}
        place = self.world.places[rank]
        info = {f"{axis}_rank": at for axis, (at, _) in place.items()}
        info |= {f"{axis}_size": size for axis, (_, size) in place.items()}
        meta = {**parts, "world_rank": rank, "world_size": len(self.world.places)}
        if self.layout == "error":
            info["distributed_error"] = True
        if self.layout != "absent":
            meta[self.world.key] = info
        if self.layout == "both":
            meta |= {"sglang_parallel_info": info, "megatron_parallel_info": info}
        if self.recompute is not None:
            meta |= {"recompute_pseudo_rank": self.recompute, "recompute_pseudo_size": 2}
        if dims is not None:
            meta["dims"] = dims
        path = self.path / ("___".join(f"{key}={part}" for key, part in parts.items()) + ".pt")
        torch.save({"value": value, "meta": meta}, path)
        return path


@dataclass(frozen=True)
class Scenario:
    """Two dumps and the flags of one comparison."""

    seed: int
    baseline: Path
    target: Path
    flags: tuple[str, ...]
    facts: tuple[str, ...]
    """What is special about it, for a failing test's message."""

    @property
    def argv(self) -> list[str]:
        return ["--baseline-path", str(self.baseline), "--target-path", str(self.target), *self.flags]


@dataclass
class _Draft:
    seed: int
    folder: Path
    rng: np.random.Generator
    worlds: tuple[World, World]
    steps: int
    facts: list[str] = field(default_factory=list)

    def choice(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def make_scenario(seed: int, folder: Path) -> Scenario:
    """Write the dumps of scenario ``seed`` below ``folder`` and choose its flags."""
    rng = np.random.default_rng([20_260, seed])
    choose = WORLDS[int(rng.integers(len(WORLDS)))], WORLDS[int(rng.integers(len(WORLDS)))]
    draft = _Draft(seed, folder, rng, choose, steps=int(rng.integers(1, 4)))
    draft.facts.append(f"{choose[0].label} against {choose[1].label}, {draft.steps} steps")
    dumps = []
    for side, world in zip(("baseline", "target"), choose, strict=True):
        path = folder / side
        path.mkdir(parents=True)
        layout = draft.choice(["absent", "error", "both"]) if draft.chance(0.06) else "known"
        dumps.append(Dump(path, world, layout=layout))
    for number in range(int(rng.integers(1, 4))):
        _write_tensor(draft, dumps, f"{draft.choice(['attn_output', 'mlp', 'moe.expert', 'logits'])}_{number}")
    if draft.chance(0.5):
        _write_others(draft, dumps)
    if draft.chance(0.1):
        _damage_file(draft, dumps[1 if draft.chance(0.7) else 0])
    flags = _flags(draft)
    return Scenario(seed, folder / "baseline", folder / "target", flags, tuple(draft.facts))


def _write_tensor(draft: _Draft, dumps: list[Dump], name: str) -> None:
    rng = draft.rng
    names, shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
    layers = 2 if draft.chance(0.4) else 0
    repeated = draft.chance(0.1)
    dtypes = [draft.choice(_DTYPES)] * 2
    if draft.chance(0.25):
        dtypes[1] = draft.choice(_DTYPES)
    if draft.chance(0.08):
        dtypes = [draft.choice(_RARE_DTYPES)] * 2
    fault = draft.choice(_FAULTS)
    tags: dict[str, Any] = {"recompute_status": "disabled"} if draft.chance(0.7) else {}
    odd_dims = [_odd_dims(draft, names) for _ in dumps]
    no_dims = [draft.chance(0.06) for _ in dumps]
    order = [list(range(len(names))), list(range(len(names)))]
    if draft.chance(0.2):
        order[int(rng.integers(2))] = rng.permutation(len(names)).tolist()
    only_target = draft.chance(0.04)
    checkpointed = [draft.chance(0.08) for _ in dumps]
    odd_tag = [{"phase": "a"} if draft.chance(0.04) else {} for _ in dumps]
    empty_ranks = draft.chance(0.8)
    draft.facts.append(f"{name} {names} {dtypes} fault={fault} odd={odd_dims} no_dims={no_dims} order={order}")
    seed = int(rng.integers(1 << 30))
    for step in range(draft.steps):
        for layer in range(layers) if layers else (None,):
            for _ in range(2 if repeated else 1):
                logical = rng.standard_normal(shape).astype(np.float32)
                extra = {} if layer is None else {"layer_id": layer}
                for number, dump in enumerate(dumps):
                    if only_target and number == 0:
                        continue
                    value = _faulty(draft, logical, fault) if number == 1 else logical
                    here = [names[at] for at in order[number]]
                    lying = split(
                        value.transpose(order[number]), here, dump.world, np.random.default_rng([seed, number])
                    )
                    dims = odd_dims[number] or lying.dims
                    spread = _Spread(
                        tuple(torch.from_numpy(shard.copy()).to(dtypes[number]) for shard in lying.shards),
                        None if no_dims[number] else dims,
                        {**tags, **odd_tag[number], **extra},
                        empty_ranks,
                        fault == "rank" and number == 1,
                        (0, 1) if checkpointed[number] else (None,),
                    )
                    _write_ranks(draft, dump, step, name, spread)


@dataclass(frozen=True)
class _Spread:
    """What the ranks of one side dump of one tensor."""

    shards: tuple[torch.Tensor, ...]
    dims: str | None
    tags: dict[str, Any]
    empty_ranks: bool
    """The second data-parallel rank holds nothing."""
    last_rank_faulty: bool
    passes: tuple[int | None, ...]
    """Forward passes of activation checkpointing; None without it."""


def _write_ranks(draft: _Draft, dump: Dump, step: int, name: str, spread: _Spread) -> None:
    for rank, shard in enumerate(spread.shards):
        tensor = shard
        if spread.empty_ranks and dump.world.places[rank].get("dp", (0, 1))[0] == 1:
            tensor = tensor[:0]
        if spread.last_rank_faulty and rank == len(spread.shards) - 1:
            if draft.chance(0.5):
                continue
            tensor = (tensor.float() + 0.25).to(tensor.dtype)
        for number in spread.passes:
            dump.recompute = number
            status = {} if number is None else {"recompute_status": ("original", "recompute")[number]}
            dump.write(step, rank, name, tensor, spread.dims, **{**spread.tags, **status})
        dump.recompute = None


def _faulty(draft: _Draft, value: Any, fault: str) -> Any:
    rng = draft.rng
    if fault == "zero":
        return np.zeros_like(value)
    if fault == "scale":
        return value * np.float32(draft.choice([1.001, 1.02, 1.5, -1.0]))
    if fault in ("tiny", "small", "large"):
        size = {"tiny": 1e-6, "small": 1e-2, "large": 0.5}[fault]
        return value + rng.standard_normal(value.shape).astype(np.float32) * np.float32(size)
    if fault in ("nan", "inf"):
        changed = value.copy()
        changed.reshape(-1)[int(rng.integers(value.size))] = np.nan if fault == "nan" else np.inf
        return changed
    if fault == "shape":
        return np.concatenate([value, value], axis=-1)
    return value


def _odd_dims(draft: _Draft, names: tuple[str, ...]) -> str | None:
    """Dims that do not say how the tensor lies, once in a while."""
    if not draft.chance(0.1):
        return None
    plain = " ".join(f"({name})" if "*" in name else name for name in names)
    return str(
        draft.choice(
            [
                plain,
                f"{plain} # tp:replicated",
                f"{plain} # ep:replicated cp:replicated",
                f"{plain} extra",
                plain.replace("h", "hidden"),
                f"{plain}[tp]" if "1" not in names[-1] else plain,
                f"{plain}[nosuch]",
                f"{plain}[tp:partial,tp]",
                f"{plain} # dp:=attn_dp",
                f"{plain} # dp:=nosuch",
                f"{plain} # tp:replicated attn_tp:replicated",
                f"{plain} {plain}",
                f"{names[0]}[cp:zigzag] " + " ".join(plain.split()[1:]),
            ]
        )
    )


def _write_others(draft: _Draft, dumps: list[Dump]) -> None:
    """Values that are no tensors, tensors of integers, gradients, empty and scalar tensors."""
    rng = draft.rng
    kind = draft.choice(["value", "rids", "integers", "empty", "scalar", "mixed", "equal_zeros", "leading"])
    draft.facts.append(f"other: {kind}")
    differ = draft.chance(0.4)
    lengths = int(rng.integers(2, 6))
    for step in range(draft.steps):
        for number, dump in enumerate(dumps):
            changed = differ and number == 1
            for rank in range(len(dump.world.places)):
                if kind == "value":
                    value: Any = draft.choice([{"a": 1, "b": [1, 2]}, "text", None, 3, [1.0, (2, 3)]])
                    dump.write(step, rank, "config", [value, rank] if changed else value)
                elif kind == "rids":
                    dump.write(step, rank, "rids", [f"{number}-{step}"])
                elif kind == "integers":
                    dump.write(step, rank, "indices", torch.arange(lengths) + int(changed), "t")
                elif kind == "empty":
                    dump.write(step, rank, "nothing", torch.zeros(0, 4 + int(changed)), "t h")
                elif kind == "scalar":
                    dump.write(step, rank, "grad__loss", torch.tensor(1.5 + 0.25 * changed))
                elif kind == "mixed":
                    dump.write(step, rank, "mixed", torch.ones(3) if not changed else [1, 2])
                elif kind == "equal_zeros":
                    dump.write(step, rank, "zeros", torch.zeros(4, 4))
                else:
                    shape = (1, lengths, 4) if number == 0 else (lengths, 4)
                    dump.write(step, rank, "leading", torch.ones(shape) + (1e-3 if changed else 0))


def _damage_file(draft: _Draft, dump: Dump) -> None:
    files = sorted(dump.path.glob("*.pt"))
    if not files:
        return
    file = files[int(draft.rng.integers(len(files)))]
    draft.facts.append(f"damaged {dump.path.name}/{file.name}")
    file.write_bytes(b"PK\x03\x04 no archive" if draft.chance(0.5) else b"")


def _flags(draft: _Draft) -> tuple[str, ...]:
    flags: list[str] = []
    grouping = draft.choice(
        ["", "", "raw", "sglang_dev", "sglang_megatron", "rank step", "rank step+", "rank layer_id", "-"]
    )
    if grouping in ("raw", "sglang_dev", "sglang_megatron"):
        flags += ["--preset", grouping]
    elif grouping == "-":
        flags += ["--grouping-skip-keys"]
    elif grouping:
        flags += ["--grouping-skip-keys", *grouping.rstrip("+").split()]
        flags += ["--token-aligner", "concat_steps"] if grouping.endswith("+") else []
    elif draft.chance(0.15):
        flags += ["--token-aligner", "concat_steps"]
    if draft.chance(0.4):
        flags += ["--diff-threshold", *draft.choice(
            [
                ["1e-5"],
                ["0.5"],
                [".*", "rel <= 1e-3 and max_abs <= 0.01"],
                ["attn.*", "rel <= 1e-6", ".*", "max_abs < 1 or mean_abs <= 0.01"],
                ["nothing", "rel <= 1"],
                ["attn_output_0", "rel > 0.0", "mlp.*", "rel <= 0.01"],
            ]
        )]  # fmt: skip
    if draft.chance(0.2):
        flags += ["--start-step", str(draft.rng.integers(0, 3))]
    if draft.chance(0.2):
        flags += ["--end-step", str(draft.rng.integers(0, 3))]
    if draft.chance(0.2):
        flags += ["--filter", draft.choice(["attn", "layer_id=1", r"rank=0___", "name=(mlp|logits)", r"\.pt$", "zzz"])]
    if draft.chance(0.3):
        flags += ["--allow-failed-pattern", draft.choice([".*", "attn.*", "attn", "rids"])]
    if draft.chance(0.3):
        flags += ["--allow-skipped-pattern", draft.choice(["^$", ".*", "attn.*", "rids|.*_0"])]
    flags += _override_flags(draft)
    return tuple(flags)


def _override_flags(draft: _Draft) -> list[str]:
    flags: list[str] = []
    if draft.chance(0.1):
        flags += ["--override-dims", draft.choice(["attn:t h # tp:replicated", "mlp_0:t h[tp]", ".*_1:s b h", "x:t"])]
    if draft.chance(0.1):
        flags += ["--override-target-dims", draft.choice([".*:t h", "attn:t h[tp]", "logits:t (h*d)"])]
    if draft.chance(0.1):
        flags += ["--override-baseline-dims", draft.choice(["mlp:b s h", "attn_output_0:t hidden"])]
    if draft.chance(0.1):
        path = draft.folder / "overrides.yaml"
        path.write_text(
            draft.choice(
                [
                    "overrides:\n- {match: 'attn', dims: 't h # tp:replicated'}\n",
                    "overrides:\n- {match: 'attn_output', dims: 's b h', side: target}\n- {match: '.*', dims: 't h'}\n",
                    "overrides: []\n",
                    "",
                ]
            )
        )
        flags += ["--override-config", str(path)]
    return flags

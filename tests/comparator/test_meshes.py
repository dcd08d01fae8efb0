"""Meshes as frameworks build them, through a whole comparison against one rank."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import comparator
from tests.comparator.fakes import FakeRecord, FakeRun, values

Array = npt.NDArray[np.float32]
Place = dict[str, tuple[int, int]]
SEQUENCE, BATCH, WIDTH, HEADS, HEAD, EXPERTS = 16, 2, 8, 4, 3, 4


def megatron() -> Iterator[Place]:
    """Pipeline 2 x context 2 x tensor 2; experts over context and tensor ranks: ep 2 x etp 2."""
    for rank, (pp, cp, tp) in enumerate(itertools.product(range(2), repeat=3)):
        inner = rank % 4
        yield {
            "pp": (pp, 2), "cp": (cp, 2), "tp": (tp, 2), "sp": (tp, 2),
            "ep": (inner // 2, 2), "etp": (inner % 2, 2), "dp": (0, 1), "edp": (0, 1),
        }  # fmt: skip


def sglang() -> Iterator[Place]:
    """Tensor 4; attention over all of it, experts as moe_ep 2 x moe_tp 2."""
    for rank in range(4):
        yield {
            "tp": (rank, 4),
            "attn_tp": (rank, 4),
            "attn_dp": (0, 1),
            "moe_ep": (rank // 2, 2),
            "moe_tp": (rank % 2, 2),
        }


def piece(array: Array, axis: int, place: tuple[int, int]) -> Array:
    return np.split(array, place[1], axis=axis)[place[0]]


def zigzag(array: Array, place: tuple[int, int]) -> Array:
    rank, size = place
    chunks = np.split(array, 2 * size)
    return np.concatenate([chunks[rank], chunks[2 * size - 1 - rank]])


def half(array: Array, *places: tuple[int, int]) -> Array:
    """A summand of ``array`` over axes of size 2: different on every rank, exact."""
    rank = sum(at << bit for bit, (at, _) in enumerate(places))
    shares = [array * np.float32(2.0**-power) for power in range(1, 2 ** len(places))]
    shares.append(array - sum(shares))
    return shares[rank]


Split = Callable[[Array, Place], Array]
HIDDEN, CORE, EXPERT, WEIGHT = (
    (SEQUENCE, BATCH, WIDTH), (SEQUENCE, BATCH, HEADS, HEAD), (EXPERTS, SEQUENCE, WIDTH), (WIDTH, EXPERTS * WIDTH),
)  # fmt: skip
MEGATRON: list[tuple[str, tuple[int, ...], Split]] = [
    ("s[cp:zigzag,sp] b h", HIDDEN, lambda x, p: piece(zigzag(x, p["cp"]), 0, p["sp"])),
    ("s[cp:zigzag] b heads[tp] d", CORE, lambda x, p: piece(zigzag(x, p["cp"]), 2, p["tp"])),
    ("s[cp] b (heads*d)[tp]", HIDDEN, lambda x, p: piece(piece(x, 0, p["cp"]), 2, p["tp"])),
    ("s[cp:zigzag] b h[tp:partial]", HIDDEN, lambda x, p: half(zigzag(x, p["cp"]), p["tp"])),
    ("s[cp:zigzag] b h # tp:replicated", HIDDEN, lambda x, p: zigzag(x, p["cp"])),
    ("e[ep] s h[etp]", EXPERT, lambda x, p: piece(piece(x, 0, p["ep"]), 2, p["etp"])),
    ("e[ep] s h[etp:partial]", EXPERT, lambda x, p: half(piece(x, 0, p["ep"]), p["etp"])),
    ("in (e*out)[etp] # ep:replicated", WEIGHT, lambda x, p: piece(x, 1, p["etp"])),
    ("s b h[ep:partial,etp:partial]", HIDDEN, lambda x, p: half(x, p["ep"], p["etp"])),
]
SGLANG: list[tuple[str, tuple[int, ...], Split]] = [
    ("t heads[attn_tp] d", (SEQUENCE, HEADS, HEAD), lambda x, p: piece(x, 1, p["attn_tp"])),
    ("t h[moe_ep:partial,moe_tp:partial]", (SEQUENCE, WIDTH), lambda x, p: half(x, p["moe_ep"], p["moe_tp"])),
    ("t h[moe_tp] # moe_ep:replicated", (SEQUENCE, WIDTH), lambda x, p: piece(x, 1, p["moe_tp"])),
    ("t h # tp:replicated", (SEQUENCE, WIDTH), lambda x, p: x),
    ("e[moe_ep] h[moe_tp]", (EXPERTS, WIDTH), lambda x, p: piece(piece(x, 0, p["moe_ep"]), 1, p["moe_tp"])),
]


@pytest.mark.parametrize(
    ("mesh", "dims", "shape", "split"),
    [(megatron, *one) for one in MEGATRON] + [(sglang, *one) for one in SGLANG],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_a_mesh_against_one_rank(mesh: Any, dims: str, shape: tuple[int, ...], split: Split) -> None:
    places = dict(enumerate(mesh()))
    stages = places[0].get("pp", (0, 1))[1]
    tensors = {layer: values(*shape, seed=layer) for layer in range(stages)}
    baseline = FakeRun([FakeRecord("x", x, dims=dims, tags={"layer_id": layer}) for layer, x in tensors.items()])
    records = [
        FakeRecord("x", split(tensors[stage], place).copy(), rank, dims=dims, tags={"layer_id": stage})
        for rank, place in places.items()
        for stage in [place.get("pp", (0, 1))[0]]
    ]
    target = FakeRun(records, places)
    report = comparator.compare(baseline, target, diff_threshold="max_abs <= 1e-6")
    assert report.summary.passed == stages, report.describe()
    assert records[1].data is not None
    records[1].data.reshape(-1)[-1] += 10
    assert comparator.compare(baseline, target).summary.failed == 1
    missing = FakeRun([record for record in records if record.rank != 1], places)
    report = comparator.compare(baseline, missing)
    assert bool(report.of("errored")) != ("replicated" in dims), report.describe()

"""Records the tensor-parallel Transformer: one process a rank, all jobs of one world size one after the other."""

from __future__ import annotations

import datetime
import tempfile
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.tensor_parallel.families import FAMILIES, Variant, variants_of
from benchmarks.faults.engines.tensor_parallel.model import Model
from benchmarks.faults.engines.tensor_parallel.numerics import torch_dtype
from benchmarks.faults.engines.tensor_parallel.schedule import generate
from benchmarks.faults.engines.tensor_parallel.shapes import Shape, Weights, make_weights
from benchmarks.faults.in_process import recorded
from benchmarks.faults.prompts import make_prompts
from dumper.adapters import loaded_adapters
from dumper.adapters.torch_distributed import TorchDistributedAdapter

TAPS = Path(__file__).with_name("taps")
COLLECTIVE_SECONDS = 120


class TensorParallel:
    """Jobs of one rank run in this process, those of more in processes of their own."""

    name = "tensor_parallel"

    def families(self) -> tuple[str, ...]:
        return tuple(FAMILIES)

    def variants(self, family: str) -> tuple[str, ...]:
        return tuple(_variants(family))

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        problems: dict[Path, str] = {}
        by_world: dict[int, list[Job]] = {}
        for job in jobs:
            by_world.setdefault(_variants(job.family)[job.variant].world, []).append(job)
        for world, chosen in sorted(by_world.items()):
            problems |= _record_on_rank(chosen, 0, 1) if world == 1 else _record_in_processes(chosen, world)
        return problems


def _variants(family: str) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants_of(FAMILIES[family])}


def _record_in_processes(jobs: Sequence[Job], world: int) -> dict[Path, str]:
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        processes = [
            context.Process(
                target=_run_rank, args=(rank, world, f"file://{folder}/rendezvous", tuple(jobs), there), daemon=True
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        problems: dict[Path, str] = {}
        while here.poll():
            problems |= here.recv()
    for job in jobs:
        if not job.run.exists():
            problems.setdefault(job.run, "a rank ended before this job")
    return problems


def _run_rank(rank: int, world: int, rendezvous: str, jobs: Sequence[Job], results: Connection) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=COLLECTIVE_SECONDS)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timeout)
    mesh = dist.init_device_mesh("cpu", (world,), mesh_dim_names=("tp",))
    for adapter in loaded_adapters():
        if isinstance(adapter, TorchDistributedAdapter):
            adapter.use_mesh(mesh)
    problems = _record_on_rank(jobs, rank, world, dist.barrier)
    if problems and rank == 0:
        results.send(problems)
    dist.destroy_process_group()


def taps_of(shape: Shape) -> tuple[Path, ...]:
    """The configs with the taps of a shape."""
    names = ("common", "output_norms" if shape.output_norms else "sums", "mixture" if shape.experts else "dense")
    return tuple(TAPS / f"{name}.yaml" for name in names)


def _alone() -> None:
    """One rank waits for nobody."""


def _record_on_rank(
    jobs: Sequence[Job], rank: int, world: int, barrier: Callable[[], object] = _alone
) -> dict[Path, str]:
    problems: dict[Path, str] = {}
    for job in jobs:
        family, variant = FAMILIES[job.family], _variants(job.family)[job.variant]
        weights = _converted(make_weights(family.shape), torch_dtype(variant.numerics.dtype, family.shape.torch_dtype))
        configs = (*job.configs, *taps_of(family.shape))
        try:
            with recorded(job.run, configs, rank, barrier):
                model = Model(family.shape, variant.numerics, weights, rank, world)
                generate(model, make_prompts(family.prompts), variant.schedule)
        except Exception:
            problems[job.run] = traceback.format_exc(limit=-3)
    return problems


def _converted(weights: Weights, dtype: torch.dtype) -> Weights:
    return Weights(
        weights.embedding.to(dtype),
        weights.head.to(dtype),
        weights.final_norm.to(dtype),
        [{name: value.to(dtype) for name, value in layer.items()} for layer in weights.layers],
    )


ENGINE = TensorParallel()

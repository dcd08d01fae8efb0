"""Records Transformers with the checkpoints that the servers serve, so that engines are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

import testbed.sglang_cpu.torchvision_operators  # noqa: F401  Transformers imports torchvision
from benchmarks.faults.engines.huggingface.variants import Variant, generate, numerics_of, prepare
from benchmarks.faults.engines.protocol import Job
from benchmarks.faults.engines.serving import PROMPTS
from benchmarks.faults.engines.sglang.checkpoints import checkpoint
from benchmarks.faults.in_process import record_each, recorded
from benchmarks.faults.prompts import make_prompts
from testbed.paths import CONFIGS

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("hf"),
        Variant("hf-eager", attention="eager"),
        Variant("hf-batch", batch=True),
        Variant("hf-chunk48", chunk=48),
        Variant("hf-eager-pieces2-fused-norm", attention="eager", pieces=2, fused_norm=True),
        Variant("hf-no-onednn", onednn=False),
        Variant("hf-float32", dtype=torch.float32),
    )
}


class ServedCheckpoints:
    """A family is a model that a config ships for; its runs are to agree with those of the servers, in float32 too."""

    name = "transformers_served"

    def families(self) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in (CONFIGS / "transformers").glob("*.yaml")))

    def variants(self, family: str) -> tuple[str, ...]:
        return tuple(VARIANTS)

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        return record_each(jobs, _record)


def _record(job: Job) -> None:
    variant = VARIANTS[job.variant]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint(job.family), dtype=variant.dtype or torch.bfloat16, attn_implementation=variant.attention
    ).eval()
    prepare(model, variant)
    with numerics_of(variant), recorded(job.run, (*job.configs, CONFIGS / "transformers" / f"{job.family}.yaml")):
        generate(model, variant, make_prompts(PROMPTS))


ENGINE = ServedCheckpoints()

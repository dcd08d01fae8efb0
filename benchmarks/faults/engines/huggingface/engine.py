"""Records Transformers models in this process; faults are patched in as configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

import testbed.sglang_cpu.torchvision_operators  # noqa: F401  Transformers imports torchvision
from benchmarks.faults.engines.huggingface.models import CLASSES, ModelShape, build_model
from benchmarks.faults.engines.huggingface.quantised import Scheme, quantise
from benchmarks.faults.engines.huggingface.variants import Variant, generate, numerics_of, prepare, variants_of
from benchmarks.faults.engines.protocol import REFERENCE, Job
from benchmarks.faults.in_process import record_each, recorded
from benchmarks.faults.prompts import make_prompts
from testbed.paths import CONFIGS


@dataclasses.dataclass(frozen=True)
class Family:
    """Recordings that are compared with each other: one model, one set of prompts, many variants."""

    name: str
    shape: ModelShape
    prompts: str = "mixed"
    scheme: Scheme | None = None
    """How the model is quantised."""


def _shape(model_type: str, dtype: torch.dtype, outliers: bool = False, seed: int = 0, **changes: object) -> ModelShape:
    return ModelShape(model_type, dtype, dict(changes), outliers, seed)


_B, _H, _F = torch.bfloat16, torch.float16, torch.float32
FAMILIES = {
    family.name: family
    for family in (
        Family("qwen3_moe-bfloat16", _shape("qwen3_moe", _B, hidden_size=256)),
        Family("qwen3-bfloat16", _shape("qwen3", _B, hidden_size=256)),
        Family("llama-bfloat16", _shape("llama", _B)),
        Family("qwen3_moe-float16", _shape("qwen3_moe", _H)),
        Family("llama-float16", _shape("llama", _H, hidden_size=256), "middle"),
        Family("qwen3_moe-outliers-bfloat16", _shape("qwen3_moe", _B, True, 3)),
        Family("qwen3-outliers-bfloat16", _shape("qwen3", _B, True, 4), "middle"),
        Family("qwen3-outliers-float16", _shape("qwen3", _H, True, 5), "middle"),
        Family("qwen3-float32", _shape("qwen3", _F, seed=6)),
        Family("qwen3_moe-float32", _shape("qwen3_moe", _F, seed=7)),
        Family("llama-long-bfloat16", _shape("llama", _B, seed=8), "long"),
        Family("qwen3_moe-long-bfloat16", _shape("qwen3_moe", _B, seed=9), "long"),
        Family("qwen3_moe-short-bfloat16", _shape("qwen3_moe", _B, seed=10), "short"),
        Family(
            "qwen3_moe-narrow-bfloat16",
            _shape(
                "qwen3_moe", _B, seed=11, hidden_size=64, num_experts=4, num_experts_per_tok=2, num_key_value_heads=8
            ),
            "middle",
        ),
        Family("cohere-bfloat16", _shape("cohere", _B, seed=13)),
        Family("deepseek_v3-bfloat16", _shape("deepseek_v3", _B, seed=14)),
        Family("falcon_h1-bfloat16", _shape("falcon_h1", _B, seed=15)),
        Family("mamba2-bfloat16", _shape("mamba2", _B, seed=16)),
        Family("qwen3_next-bfloat16", _shape("qwen3_next", _B, seed=17)),
        Family(
            "qwen3-fp8-token-bfloat16", _shape("qwen3", _B, seed=18, hidden_size=256), scheme=Scheme("float8_e4m3fn")
        ),
        Family(
            "qwen3_moe-fp8-group-bfloat16",
            _shape("qwen3_moe", _B, seed=19, hidden_size=256),
            scheme=Scheme("float8_e4m3fn", "group"),
        ),
        Family("llama-fp8-tensor-bfloat16", _shape("llama", _B, seed=20), "middle", Scheme("float8_e4m3fn", "tensor")),
        Family("qwen3-int8-outliers-bfloat16", _shape("qwen3", _B, True, 21), scheme=Scheme("int8")),
        Family("qwen3_moe-int8-bfloat16", _shape("qwen3_moe", _B, seed=22), scheme=Scheme("int8")),
        Family("llama-fp8-cache-bfloat16", _shape("llama", _B, seed=23), scheme=Scheme("float8_e4m3fn", "cache")),
        Family("qwen3-wide-heads-bfloat16", _shape("qwen3", _B, seed=12, head_dim=128, num_attention_heads=4)),
    )
}


class HuggingFace:
    """Records in this process, one job after the other."""

    name = "transformers"

    def families(self) -> tuple[str, ...]:
        return tuple(FAMILIES)

    def variants(self, family: str) -> tuple[str, ...]:
        return tuple(_variants(FAMILIES[family]))

    def record(self, jobs: Sequence[Job]) -> dict[Path, str]:
        return record_each(jobs, _record)


def _variants(family: Family) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants_of(family.shape.is_mixture, family.shape.dtype)}


def _record(job: Job) -> None:
    family = FAMILIES[job.family]
    variant = _variants(family)[job.variant]
    kind = family.shape.model_type
    torch.manual_seed(0)
    model = build_model(family.shape, variant.attention, variant.dtype)
    prepare(model, variant)
    if family.scheme is not None and variant.name != REFERENCE:
        quantise(model, family.scheme, variant)
    faults = [text.replace("FAMILY", kind).replace("CLASS", CLASSES[kind]) for text in job.configs]
    shipped, own = CONFIGS / "transformers" / f"{kind}.yaml", Path(__file__).with_name("configs") / f"{kind}.yaml"
    with numerics_of(variant), recorded(job.run, (*faults, shipped if shipped.exists() else own)):
        generate(model, variant, make_prompts(family.prompts))


ENGINE = HuggingFace()

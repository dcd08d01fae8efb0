"""What is recorded of the tensor-parallel Transformer: families of runs that agree, each in many variants."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.faults.engines.protocol import REFERENCE
from benchmarks.faults.engines.tensor_parallel.numerics import Numerics
from benchmarks.faults.engines.tensor_parallel.schedule import Schedule
from benchmarks.faults.engines.tensor_parallel.shapes import Shape


@dataclass(frozen=True)
class Variant:
    """How a model is computed; all variants of a family agree but for rounding."""

    name: str
    world: int = 1
    numerics: Numerics = field(default_factory=Numerics)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True)
class Family:
    """Recordings that are compared with each other."""

    name: str
    shape: Shape
    prompts: str = "mixed"


FAMILIES = {
    family.name: family
    for family in (
        Family("llama-bfloat16", Shape(hidden=256)),
        Family(
            "qwen3_moe-bfloat16", Shape(hidden=256, intermediate=64, query_key_norm=True, experts=16, chosen=4, seed=1)
        ),
        Family("qwen2-bfloat16", Shape(query_key_bias=True, seed=2), "middle"),
        Family(
            "gemma2-bfloat16",
            Shape(output_norms=True, embedding_scale=11.3, score_cap=20.0, window=32, activation="gelu", seed=3),
        ),
        # Scores go beyond the cap, as those of the trained model do beyond its cap of 50.
        Family(
            "gemma2-capped-bfloat16",
            Shape(output_norms=True, embedding_scale=11.3, score_cap=2.0, window=32, activation="gelu", seed=13),
            "middle",
        ),
        Family("mixtral-bfloat16", Shape(experts=8, chosen=2, intermediate=128, seed=4), "middle"),
        Family(
            "deepseek-bfloat16",
            Shape(latent=64, experts=16, chosen=4, renormalise=False, shared_expert=True, intermediate=64, seed=5),
        ),
        Family(
            "qwen3_moe-massive-bfloat16",
            Shape(query_key_norm=True, experts=16, chosen=4, intermediate=64, massive_channels=(3, 77), seed=6),
        ),
        Family("qwen3-massive-bfloat16", Shape(query_key_norm=True, massive_channels=(3, 77), seed=7), "middle"),
        Family("llama-float16", Shape(dtype="float16", seed=8)),
        Family(
            "qwen3_moe-float16",
            Shape(dtype="float16", query_key_norm=True, experts=16, chosen=4, intermediate=64, seed=9),
        ),
        Family("qwen3-deep-bfloat16", Shape(query_key_norm=True, layers=8, hidden=64, heads=4, seed=10), "shared"),
        Family("mixtral-long-bfloat16", Shape(experts=8, chosen=2, intermediate=128, seed=11), "long"),
        Family(
            "gemma2-float32",
            Shape(
                output_norms=True,
                embedding_scale=11.3,
                score_cap=20.0,
                window=32,
                activation="gelu",
                seed=12,
                dtype="float32",
            ),
            "middle",
        ),
        Family(
            "qwen3_moe-alone-bfloat16",
            Shape(query_key_norm=True, experts=32, chosen=4, hidden=256, intermediate=64, layers=12, seed=13),
            "alone",
        ),
        Family("llama-repeated-bfloat16", Shape(layers=8, hidden=256, seed=14), "repeated"),
        Family(
            "mixtral-repeated-bfloat16",
            Shape(experts=8, chosen=2, intermediate=128, layers=8, hidden=256, seed=15),
            "repeated",
        ),
    )
}


def variants_of(family: Family) -> tuple[Variant, ...]:
    """The clean variants of a family; where they are not in float32 themselves, a reference in float32 last."""
    shape = family.shape
    numerics = {
        "plain": Numerics(),
        "wide": Numerics(attention="wide", fused_norm=True, fused_add=True),
        "blocks": Numerics(attention="blocks"),
        "split4": Numerics(split=4),
        "fused-add": Numerics(attention="blocks", fused_norm=True, fused_add=True),
        "split8-blocks": Numerics(attention="blocks", block=16, split=8, fused_add=True),
    }
    found = [Variant(name, 1, chosen) for name, chosen in numerics.items()]
    low = shape.dtype
    found += [
        Variant("concurrent-blocks", 1, Numerics(attention="blocks"), Schedule(concurrent=True)),
        Variant("chunk16", 1, Numerics(), Schedule(chunk=16)),
        Variant("chunk48-wide-padding", 1, Numerics(attention="wide"), Schedule(chunk=48, padding=5, concurrent=True)),
        Variant("tp2", 2, Numerics()),
        Variant("tp2-low", 2, Numerics(reduce_dtype=low, fused_norm=True)),
        Variant("tp2-blocks-concurrent", 2, Numerics(attention="blocks"), Schedule(concurrent=True)),
        Variant("tp2-split2-wide", 2, Numerics(attention="wide", split=2, fused_add=True)),
        Variant("tp4", 4, Numerics()),
        Variant("tp4-low", 4, Numerics(reduce_dtype=low)),
        Variant(
            "tp4-low-reversed-chunk",
            4,
            Numerics(attention="blocks", reduce_dtype=low, reduce_order=-1),
            Schedule(chunk=32),
        ),
        Variant("tp4-fused-padding", 4, Numerics(fused_norm=True, fused_add=True), Schedule(padding=3)),
    ]
    if shape.experts:
        found += [
            Variant("experts-wide", 1, Numerics(expert_dtype="float32")),
            Variant("experts-reversed-tp2", 2, Numerics(expert_order=-1)),
            Variant("router-wide-tp2", 2, Numerics(router_dtype="float32", attention="wide")),
        ]
    if family.prompts == "shared":
        found.append(Variant("prefix-cache", 1, Numerics(), Schedule(prefix_cache=True)))
        found.append(Variant("tp2-prefix-cache", 2, Numerics(attention="blocks"), Schedule(prefix_cache=True)))
    if shape.dtype == "float32":
        return tuple(found)
    return (*found, Variant(REFERENCE, 1, Numerics(dtype="float32")))

"""Small Transformers models with seeded weights, and the numeric variants in which the same model can be computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

VOCABULARY = 320
LAYERS = 4
CLASSES = {
    "llama": "Llama",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "cohere": "Cohere",
    "deepseek_v3": "DeepseekV3",
    "falcon_h1": "FalconH1",
    "mamba2": "Mamba2",
    "qwen3_next": "Qwen3Next",
}
"""Prefix of the class names of each model type that has a config in ``configs/transformers`` or in ``configs`` here."""
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 64,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
SHAPES: dict[str, dict[str, Any]] = {
    "cohere": {"tie_word_embeddings": True},
    "deepseek_v3": {
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 64,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "head_dim": 16,
        "v_head_dim": 32,
        "num_key_value_heads": 8,
    },
    "falcon_h1": {
        "mamba_d_ssm": 256,
        "mamba_n_heads": 8,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    "mamba2": {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 16, "expand": 2},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
    },
}
"""What models of a type have beside ``SHAPE``."""
MASSIVE_CHANNELS = (3, 77)
"""Channels of the residual stream that are much larger than the others, as trained models have them."""


@dataclass(frozen=True)
class ModelShape:
    """A model that can be built again and again with the same weights."""

    model_type: str
    dtype: torch.dtype
    changes: dict[str, Any] = field(default_factory=dict)
    """Of ``SHAPE``, ``SHAPES`` and ``EXPERTS``."""
    outliers: bool = False
    """Whether the residual stream has massive channels."""
    seed: int = 0

    @property
    def is_mixture(self) -> bool:
        return self.model_type == "qwen3_moe"


def build_model(shape: ModelShape, attention: str, dtype: torch.dtype | None = None) -> Any:
    """The model in evaluation mode on the CPU; in another dtype its weights stay those of its own."""
    arguments = SHAPE | SHAPES.get(shape.model_type, {}) | (EXPERTS if shape.is_mixture else {}) | shape.changes
    prefix = CLASSES[shape.model_type]
    config = getattr(transformers, f"{prefix}Config")(**arguments)
    kind = getattr(transformers, f"{prefix}ForCausalLM")
    config._attn_implementation = attention if kind._supports_sdpa else "eager"
    model = kind(config).eval()
    _fill(model, shape)
    return model.to(shape.dtype).to(dtype or shape.dtype)


def _fill(model: Any, shape: ModelShape) -> None:
    """Random weights of a size at which activations neither grow nor vanish; norms near one."""
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and not (parameter == 1).all():
                # A norm that counts from one, or a bias; time steps and decays of a state space stay as they were made.
                if (parameter == 0).all():
                    parameter.copy_((0.2 if "norm" in name else 0.1) * noise)
            elif parameter.dim() == 1:
                gain = 1.6 if "q_norm" in name else 1.0
                parameter.copy_(gain * torch.exp(0.2 * noise))
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("correction_bias"):
                buffer.copy_(0.05 * torch.randn(buffer.shape, generator=generator))
        if shape.outliers:
            channels = list(MASSIVE_CHANNELS)
            model.model.embed_tokens.weight[:, channels] = 60.0 + 5.0 * model.model.embed_tokens.weight[:, channels]
            for layer in model.model.layers:
                layer.input_layernorm.weight[channels] *= 0.05
                layer.post_attention_layernorm.weight[channels] *= 0.05
            model.model.norm.weight[channels] *= 0.05

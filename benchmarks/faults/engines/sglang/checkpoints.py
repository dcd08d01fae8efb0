"""Small models of the families that configs ship for, written as checkpoints that SGLang serves on a CPU.

``python -m benchmarks.faults.engines.sglang.checkpoints NAME FOLDER`` writes one; in a process of its own, because
Transformers needs the stand-ins of ``testbed`` where the installed torchvision is a CUDA build.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from testbed.models import _byte_tokenizer
from testbed.paths import CACHE, CHECKOUT, stand_in_environment

_SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": 257,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 32,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 128,
    "moe_layer_freq": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    # The CPU version of its rotary embedding takes no other.
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    },
}
_BIASED: dict[str, Any] = {
    **_LATENT,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "n_group": 4,
    "topk_group": 2,
    "n_routed_experts": 16,
}
_GEMMA: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",  # SGLang reads this name, Transformers another
    "tie_word_embeddings": True,
}
_GEMMA2 = _GEMMA | {"query_pre_attn_scalar": 32, "sliding_window": 64, "attn_logit_softcapping": 20.0}
_GEMMA3 = {
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
CLASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _EXPERTS),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"hidden_size": 256}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _GEMMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA2),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA3 | {"tie_word_embeddings": True}),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"hidden_size": 256, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM", _LATENT),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", _BIASED),
}
"""The classes of Transformers, and what differs from ``_SHAPE``."""
CONFIG_OF = {"deepseek_v3": "deepseek_v2"}
"""The shipped config of a model that has none of its own name."""


def checkpoint(name: str) -> Path:
    """The folder of a model, written when it is not there yet."""
    folder = CACHE / "fault-models" / name
    if not folder.exists():
        unfinished = folder.with_name(f".unfinished-{name}-{os.getpid()}")
        unfinished.mkdir(parents=True)
        command = [sys.executable, "-m", __spec__.name, name, str(unfinished)]
        subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **stand_in_environment()}, check=True)
        unfinished.rename(folder)
    return folder


def _write(name: str, folder: Path) -> None:
    import torch
    import transformers

    config_class, model_class, changes = CLASSES[name]
    arguments = _SHAPE | changes
    config = getattr(transformers, config_class)(**arguments, dtype=torch.bfloat16)
    model = getattr(transformers, model_class)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                # Gemma's norms multiply by one more than their weight.
                norm = "norm" in key
                shifted = norm and name.startswith("gemma")
                value = torch.exp(0.2 * noise) - (1.0 if shifted else 0.0) if norm else 0.3 * noise
                parameter.copy_(value)
            elif "embed_tokens" in key:
                scale = arguments["hidden_size"] ** -0.5 if name.startswith("gemma") else 1.0
                parameter.copy_(noise * scale)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        for key, buffer in sorted(model.named_buffers()):
            if "correction_bias" in key:
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    model.to(torch.bfloat16).save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    _write(sys.argv[1], Path(sys.argv[2]))

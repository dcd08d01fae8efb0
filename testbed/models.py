"""Tiny, randomly initialised models that SGLang, vLLM and Transformers all serve on a CPU.

Less than a million parameters each and a byte-level tokenizer of 258 tokens; nothing is downloaded. Up to four
tensor-parallel ranks each get a part of all heads and sizes: SGLang on a CPU pads what it cannot split with zeros
(key-value heads, and intermediate sizes to multiples of 32 a rank), and ranks that hold zeros would test nothing.
The head size of 32 is the smallest that vLLM takes on a CPU.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from testbed.paths import CACHE, CHECKOUT, stand_in_environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ModelName = Literal["qwen3", "qwen3_moe", "llama", "qwen2", "mixtral", "gemma", "gemma2", "gemma3", "deepseek_v2"]
"""As the patch configs for SGLang are called."""

_SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": 257,
    "intermediate_size": 128,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


_LATENT_ATTENTION: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 8,
    "n_routed_experts": 4,
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
        "original_max_position_embeddings": 128,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    },
}
_SHARED_OUT: dict[str, Any] = {"hidden_size": 256}
"""For models whose heads share out the hidden size."""
_GEMMA: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_WINDOWS: dict[str, Any] = {**_GEMMA, "query_pre_attn_scalar": 32, "sliding_window": 64}
_CLASSES: dict[ModelName, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _EXPERTS),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _SHARED_OUT),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_SHARED_OUT, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _GEMMA),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_WINDOWS, "attn_logit_softcapping": 20.0}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _WINDOWS),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM", _LATENT_ATTENTION),
}
"""The classes of Transformers, and what differs from ``_SHAPE``."""


def tiny_model(name: ModelName) -> Path:
    """The folder of a model. All are written when they are not there yet (safe with several processes at once)."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = CACHE / "models" / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
            try:
                # In a process of its own: Transformers imports the torchvision that the stand-in mends.
                command = [sys.executable, "-m", "testbed.models", str(unfinished)]
                subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **stand_in_environment()}, check=True)
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder / name


def _write(name: ModelName, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config_class, model_class, changes = _CLASSES[name]
    config = getattr(transformers, config_class)(**{**_SHAPE, **changes}, dtype=torch.bfloat16)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # Gemma multiplies its embeddings by the square root of the hidden size.
                scaled = name.startswith("gemma") and "embed_tokens" in key
                parameter.normal_(0, 0.025 if scaled else 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=512
    )


if __name__ == "__main__":
    for written in _CLASSES:
        _write(written, Path(sys.argv[1]) / written)

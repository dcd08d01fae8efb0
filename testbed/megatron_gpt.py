"""A GPTModel of Megatron-core on a CPU, with the weights of a model of Transformers: a trainer beside a server.

Megatron-core is taken from ``sys.path`` (``testbed.wheels.unpacked_wheel``); ranks talk over gloo, and there is no
Transformer Engine. ``start`` is called once in each rank, ``load`` makes the model, and each call of ``forward`` is a
teacher-forced pass over whole sequences.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Weights = dict[str, torch.Tensor]


def start(rank: int, size: int, store: Path) -> None:
    """Make a process group of ``size`` tensor-parallel ranks that meet in the file ``store``."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # 0.16 asks for it without Transformer Engine, too
    torch.cuda.current_device = lambda: "cpu"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
    # The states of random numbers are kept on CUDA devices; nothing here is random.
    tensor_parallel.get_cuda_rng_tracker().fork = lambda *_, **__: contextlib.nullcontext()


def load(
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    change: Callable[[Weights], None] | None = None,
    padded_vocabulary: int | None = None,
    **settings: Any,
) -> Any:
    """The GPTModel of Llama, Qwen3 or Qwen3-MoE in ``folder``, this rank's part of it, in evaluation mode.

    ``change`` may change the weights (names and shapes of Transformers) before they are put in; ``settings`` go to
    the TransformerConfig, but ``rotary_base`` to the model.
    """
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig
    from safetensors.torch import load_file

    told = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    if change is not None:
        change(weights)
    experts = told.get("num_experts") or told.get("num_local_experts")
    normed = "model.layers.0.self_attn.q_norm.weight" in weights
    size = parallel_state.get_tensor_model_parallel_world_size()
    rotary_base = settings.pop("rotary_base", None) or (told.get("rope_parameters") or told)["rope_theta"]
    mixture = {
        "num_moe_experts": experts,
        "moe_ffn_hidden_size": told.get("moe_intermediate_size"),
        "moe_router_topk": told.get("num_experts_per_tok"),
        "moe_router_load_balancing_type": "none",
        "moe_token_dispatcher_type": "allgather",
    }
    config = TransformerConfig(
        **{
            "num_layers": told["num_hidden_layers"],
            "hidden_size": told["hidden_size"],
            "ffn_hidden_size": told["intermediate_size"],
            "num_attention_heads": told["num_attention_heads"],
            "num_query_groups": told["num_key_value_heads"],
            "kv_channels": told["head_dim"],
            "layernorm_epsilon": told["rms_norm_eps"],
            "qk_layernorm": normed,
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "add_bias_linear": False,
            "params_dtype": dtype,
            "bf16": dtype == torch.bfloat16,
            "attention_softmax_in_fp32": True,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "use_cpu_initialization": True,
            "gradient_accumulation_fusion": False,
            "bias_dropout_fusion": False,
            "masked_softmax_fusion": False,
            "tensor_model_parallel_size": size,
            **(mixture if experts else {}),
            **settings,
        }
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=experts, qk_layernorm=normed, normalization="RMSNorm"),
        vocab_size=padded_vocabulary or told["vocab_size"],
        max_sequence_length=told["max_position_embeddings"],
        position_embedding_type="rope",
        rotary_base=rotary_base,
    )
    _fill(model, weights, told, parallel_state.get_tensor_model_parallel_rank(), size)
    return model.to(dtype).eval()


def forward(model: Any, sequences: Sequence[Sequence[int]], padding: int = 0) -> torch.Tensor:
    """Logits of one pass over ``sequences``, padded on the right to the longest: (batch, sequence, vocabulary)."""
    length = max(len(sequence) for sequence in sequences)
    tokens = torch.tensor([[*sequence, *[padding] * (length - len(sequence))] for sequence in sequences])
    mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
    with torch.no_grad():
        logits: torch.Tensor = model(tokens, torch.arange(length).expand(tokens.shape), mask)
    return logits


def _fill(model: Any, weights: Weights, told: dict[str, Any], rank: int, size: int) -> None:
    """Put the weights of Transformers where Megatron-core has them, this rank's part of each."""

    def part(weight: torch.Tensor, dimension: int = 0) -> torch.Tensor:
        return weight.chunk(size, dimension)[rank]

    def rows(weight: torch.Tensor) -> torch.Tensor:
        """This rank's part of the vocabulary, which may be padded."""
        padding = model.vocab_size - weight.shape[0]
        return part(torch.nn.functional.pad(weight, (0, 0, 0, padding)))

    groups, head, hidden = told["num_key_value_heads"], told["head_dim"], told["hidden_size"]
    with torch.no_grad():
        model.embedding.word_embeddings.weight.copy_(rows(weights["model.embed_tokens.weight"]))
        model.output_layer.weight.copy_(rows(weights["lm_head.weight"]))
        model.decoder.final_layernorm.weight.copy_(weights["model.norm.weight"])
        for number, layer in enumerate(model.decoder.layers):
            own = {
                name.removeprefix(f"model.layers.{number}."): weight
                for name, weight in weights.items()
                if name.startswith(f"model.layers.{number}.")
            }
            attention, mlp = layer.self_attention, layer.mlp
            # Queries, keys and values of one group of heads after the other.
            fused = [own[f"self_attn.{letter}_proj.weight"].view(groups, -1, head, hidden) for letter in "qkv"]
            attention.linear_qkv.weight.copy_(part(torch.cat(fused, 1)).reshape(-1, hidden))
            attention.linear_proj.weight.copy_(part(own["self_attn.o_proj.weight"], 1))
            if "self_attn.q_norm.weight" in own:
                attention.q_layernorm.weight.copy_(own["self_attn.q_norm.weight"])
                attention.k_layernorm.weight.copy_(own["self_attn.k_norm.weight"])
            layer.input_layernorm.weight.copy_(own["input_layernorm.weight"])
            layer.pre_mlp_layernorm.weight.copy_(own["post_attention_layernorm.weight"])
            blocks = [(mlp, "mlp.")]
            if hasattr(mlp, "router"):
                mlp.router.weight.copy_(own["mlp.gate.weight"])
                blocks = [(one, f"mlp.experts.{index}.") for index, one in enumerate(mlp.experts.local_experts)]
            for block, prefix in blocks:
                gate, up = own[f"{prefix}gate_proj.weight"], own[f"{prefix}up_proj.weight"]
                block.linear_fc1.weight.copy_(torch.cat([part(gate), part(up)]))
                block.linear_fc2.weight.copy_(part(own[f"{prefix}down_proj.weight"], 1))

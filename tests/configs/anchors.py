"""What every tap of the shipped SGLang configs has to lie next to, release by release.

Texts are statements in one normal form (``ast.unparse``), up to where releases differ without meaning anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet

Where = Literal["after", "before", "returned"]
ALWAYS = ">=0.5.9"
MODELS = "sglang.srt.models."


@dataclass(frozen=True)
class Anchor:
    """One tap, and the statement that it has to lie after or before, or the value whose return it has to see."""

    tap: str
    function: str
    where: Where
    texts: tuple[tuple[str, str], ...]
    """Releases, and how the statement begins in them (for ``returned``: the whole expression)."""

    def text(self, release: str) -> str | None:
        """The text for one release; None when the tap is not there in it."""
        found = [text for releases, text in self.texts if SpecifierSet(releases).contains(release)]
        assert len(found) <= 1, f"{self.tap}: two texts for {release}"
        return found[0] if found else None


def after(tap: str, function: str, *texts: tuple[str, str]) -> Anchor:
    return Anchor(tap, function, "after", texts)


def before(tap: str, function: str, *texts: tuple[str, str]) -> Anchor:
    return Anchor(tap, function, "before", texts)


def returned(tap: str, function: str, *texts: tuple[str, str]) -> Anchor:
    return Anchor(tap, function, "returned", texts)


def _layer(
    layer: str, prepare_attention: str, boundary_since: str, returns: tuple[tuple[str, str], ...]
) -> list[Anchor]:
    """Decoder layers whose communication is done by a communicator, later by boundaries."""
    old, new = f"<{boundary_since}", f">={boundary_since}"
    handed_on = "hidden_states, residual = self.layer_communicator."
    return [
        after(
            "layer_input",
            layer,
            (old, f"{handed_on}{prepare_attention}(hidden_states, residual, forward_batch"),
            (new, "hidden_states = self.attn_boundary.prepare(hidden_states, forward_batch"),
        ),
        after(
            "attn_output",
            layer,
            (
                ALWAYS,
                "if hidden_states.shape[0] != 0:\n    hidden_states = self.self_attn(positions=positions, "
                "hidden_states=hidden_states, forward_batch=forward_batch)",
            ),
        ),
        after(
            "pre_mlp_residual",
            layer,
            (old, f"{handed_on}prepare_mlp(hidden_states, residual, forward_batch"),
            (new, "hidden_states = self.ffn_boundary.prepare(hidden_states, forward_batch"),
        ),
        returned("mlp_output", layer, *returns),
    ]


def _plain_layer(layer: str, mlp: str) -> list[Anchor]:
    """Decoder layers that norm and add themselves, and leave that to boundaries later."""
    old, new = "<0.5.22", ">=0.5.22"
    return [
        after(
            "layer_input",
            layer,
            (old, "if residual is None:\n    residual = hidden_states\n    hidden_states = self.input_layernorm("),
            (new, "hidden_states = self.attn_boundary.prepare(hidden_states, forward_batch"),
        ),
        after("attn_output", layer, (ALWAYS, "hidden_states = self.self_attn(positions=positions, hidden_states=")),
        after(
            "pre_mlp_residual",
            layer,
            (old, "hidden_states, residual = self.post_attention_layernorm(hidden_states, residual"),
            (new, "hidden_states = self.ffn_boundary.prepare(hidden_states, forward_batch"),
        ),
        before("pre_mlp_residual", layer, (ALWAYS, f"hidden_states = self.{mlp}(hidden_states")),
        returned(
            "mlp_output",
            layer,
            (old, "(hidden_states, residual)"),
            (new, "self.ffn_boundary.finish(hidden_states, forward_batch)"),
        ),
    ]


def _gemma_layer(layer: str, feed_forward_norm: str, attention: str = "positions=positions, ") -> list[Anchor]:
    return [
        after("attn_output", layer, (ALWAYS, f"hidden_states = self.self_attn({attention}hidden_states=hidden_states")),
        before("pre_mlp_residual", layer, (ALWAYS, "hidden_states = self.mlp(hidden_states)")),
        after("pre_mlp_residual", layer, (ALWAYS, feed_forward_norm)),
        after("mlp_output", layer, (ALWAYS, "hidden_states = self.mlp(hidden_states)")),
    ]


def _heads(function: str, value: str = "attn_output") -> Anchor:
    return before("attn_pre_o_proj", function, (ALWAYS, f"output, _ = self.o_proj({value}"))


def _experts(function: str, router: str = "gate") -> list[Anchor]:
    return [
        after("moe_router_logits", function, (ALWAYS, f"router_logits, _ = self.{router}(")),
        after("moe_expert_output", function, (ALWAYS, "final_hidden_states = self.experts(hidden_states, topk_output")),
    ]


def _final(function: str, *texts: tuple[str, str]) -> Anchor:
    default = ((ALWAYS, "return self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch"),)
    return before("final_norm_output", function, *(texts or default))


FUSED_NORM = (
    "if residual is None:\n    residual = hidden_states\n    hidden_states = self.input_layernorm(hidden_states)"
)
TIED_LOGITS = (ALWAYS, "return self.logits_processor(input_ids, hidden_states, self.model.embed_tokens, forward_batch")
MHA = "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mha.DeepseekMHAForwardMixin."
MLA = "sglang.srt.models.deepseek_common.attention_forward_methods.forward_mla.DeepseekMLAForwardMixin."
DEEPSEEK_LAYER = MODELS + "deepseek_v2.DeepseekV2DecoderLayer.forward"

ANCHORS: dict[str, list[Anchor]] = {
    "qwen3_moe": [
        *_layer(
            MODELS + "qwen3_moe.Qwen3MoeDecoderLayer.forward",
            "prepare_attn_and_capture_last_layer_outputs",
            "0.5.21",
            (("<0.5.21", "(hidden_states, residual)"), (">=0.5.21", "hidden_states")),
        ),
        _heads(MODELS + "qwen3_moe.Qwen3MoeAttention.forward_core"),
        *_experts(MODELS + "qwen3_moe.Qwen3MoeSparseMoeBlock.forward_normal"),
        _final(
            MODELS + "qwen3_moe.Qwen3MoeForCausalLM.forward",
            ("<0.5.10", "return self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch"),
            (">=0.5.10", "logits_output = self.logits_processor(input_ids, hidden_states, self.lm_head, forward_batch"),
        ),
    ],
    "qwen3": [
        *_layer(
            MODELS + "qwen3.Qwen3DecoderLayer.forward",
            "prepare_attn",
            "0.5.21",
            (("<0.5.21", "(hidden_states, residual)"), (">=0.5.21", "hidden_states")),
        ),
        _heads(MODELS + "qwen3.Qwen3Attention.forward"),
        _final(MODELS + "qwen3.Qwen3ForCausalLM.forward"),
    ],
    "llama": [
        *_plain_layer(MODELS + "llama.LlamaDecoderLayer.forward", "mlp"),
        _heads(MODELS + "llama.LlamaAttention.forward"),
        _final(MODELS + "llama.LlamaForCausalLM.forward"),
    ],
    "qwen2": [
        *_plain_layer(MODELS + "qwen2.Qwen2DecoderLayer.forward", "mlp"),
        _heads(MODELS + "qwen2.Qwen2Attention.forward"),
        _final(MODELS + "qwen2.Qwen2ForCausalLM.forward"),
    ],
    "mixtral": [
        *_plain_layer(MODELS + "mixtral.MixtralDecoderLayer.forward", "block_sparse_moe"),
        _heads(MODELS + "mixtral.MixtralAttention.forward"),
        *_experts(MODELS + "mixtral.MixtralMoE.forward"),
        _final(MODELS + "mixtral.MixtralForCausalLM.forward"),
    ],
    "gpt_oss": [
        *_layer(
            MODELS + "gpt_oss.GptOssDecoderLayer.forward",
            "prepare_attn",
            "0.5.21",
            (("<0.5.21", "(hidden_states, residual)"), (">=0.5.21", "hidden_states")),
        ),
        _heads(MODELS + "gpt_oss.GptOssAttention.forward_core"),
        *_experts(MODELS + "gpt_oss.GptOssSparseMoeBlock.forward_normal", "router"),
        _final(MODELS + "gpt_oss.GptOssForCausalLM.forward"),
    ],
    "deepseek_v2": [
        after(
            "layer_input",
            DEEPSEEK_LAYER,
            ("<0.5.14", "hidden_states, residual = self.layer_communicator.prepare_attn(hidden_states, residual"),
            (
                ">=0.5.14,<0.5.21",
                "hidden_states, residual = self.layer_communicator.prepare_attn_and_capture_last_layer_outputs(",
            ),
            (">=0.5.21", "hidden_states = self.attn_boundary.prepare(hidden_states, forward_batch"),
        ),
        before(
            "attn_output",
            DEEPSEEK_LAYER,
            ("<0.5.21", "hidden_states, residual = self.layer_communicator.prepare_mlp(hidden_states, residual"),
            (">=0.5.21", "hidden_states = self.attn_boundary.finish(hidden_states, forward_batch"),
        ),
        after(
            "pre_mlp_residual",
            DEEPSEEK_LAYER,
            ("<0.5.21", "hidden_states, residual = self.layer_communicator.prepare_mlp(hidden_states, residual"),
            (">=0.5.21", "hidden_states = self.ffn_boundary.prepare(hidden_states, forward_batch"),
        ),
        returned(
            "mlp_output",
            DEEPSEEK_LAYER,
            ("<0.5.10", "(hidden_states, residual)"),
            (">=0.5.10,<0.5.21", "(hidden_states, residual, topk_indices)"),
            (">=0.5.21", "(hidden_states, topk_indices)"),
        ),
        before(
            "attn_pre_o_proj",
            MODELS + "deepseek_v2.DeepseekV2AttentionMLA.forward_absorb_core",
            ("<0.5.10", "output, _ = self.o_proj(attn_bmm_output)"),
        ),
        before(
            "attn_pre_o_proj",
            MLA + "forward_absorb_core",
            (">=0.5.10", "output, _ = self.o_proj(attn_bmm_output)"),
        ),
        _heads(MHA + "forward_normal_core"),
        _heads(MHA + "forward_normal_chunked_kv_core"),
        *(
            after(
                tap,
                MODELS + "deepseek_v2.DeepseekV2MoE.forward_normal",
                (ALWAYS, "router_logits = self.gate(hidden_states, gemm_output_zero_allocator"),
            )
            for tap in ("moe_router_logits", "moe_correction_bias")
        ),
        after(
            "moe_expert_output",
            MODELS + "deepseek_v2.DeepseekV2MoE.forward_normal",
            (ALWAYS, "final_hidden_states = self.experts(hidden_states, topk_output"),
        ),
        _final(MODELS + "deepseek_v2.DeepseekV2ForCausalLM.forward"),
    ],
    "gemma": [
        after("layer_input", MODELS + "gemma.GemmaDecoderLayer.forward", (ALWAYS, FUSED_NORM)),
        *_gemma_layer(
            MODELS + "gemma.GemmaDecoderLayer.forward",
            "hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)",
        ),
        _heads(MODELS + "gemma.GemmaAttention.forward"),
        _final(MODELS + "gemma.GemmaForCausalLM.forward", TIED_LOGITS),
    ],
    "gemma2": [
        after("layer_input", MODELS + "gemma2.Gemma2DecoderLayer.forward", (ALWAYS, FUSED_NORM)),
        *_gemma_layer(
            MODELS + "gemma2.Gemma2DecoderLayer.forward",
            "hidden_states, residual = self.pre_feedforward_layernorm(hidden_states, residual)",
        ),
        _heads(MODELS + "gemma2.Gemma2Attention.forward"),
        _final(MODELS + "gemma2.Gemma2ForCausalLM.forward", TIED_LOGITS),
    ],
    "gemma3": [
        after(
            "layer_input",
            MODELS + "gemma3_causal.Gemma3DecoderLayer.forward",
            ("<0.5.17", "hidden_states = self.input_layernorm(hidden_states)"),
            (">=0.5.17", FUSED_NORM),
        ),
        *_gemma_layer(MODELS + "gemma3_causal.Gemma3DecoderLayer.forward", "hidden_states"),
        after(
            "pre_mlp_residual",
            MODELS + "gemma3_causal.Gemma3DecoderLayer.forward",
            ("<0.5.17", "hidden_states = self.pre_feedforward_layernorm(hidden_states)"),
            (">=0.5.17", "hidden_states, residual = self.pre_feedforward_layernorm(hidden_states, residual)"),
        ),
        before(
            "attn_pre_o_proj",
            MODELS + "gemma3_causal.Gemma3Attention.forward",
            ("<0.5.10", "output, _ = self.o_proj(attn_output)"),
        ),
        before(
            "attn_pre_o_proj",
            MODELS + "gemma3_causal.Gemma3Attention.forward_native",
            (">=0.5.10", "output, _ = self.o_proj(attn_output)"),
        ),
        _final(MODELS + "gemma3_causal.Gemma3ForCausalLM.forward", TIED_LOGITS),
    ],
}
"""Model config of ``configs/sglang`` by name."""

"""The configs for Megatron-core, against its releases: wheels without what they depend on."""

from __future__ import annotations

import pytest

from testbed.paths import CONFIGS
from testbed.wheels import MEGATRON_RELEASES, megatron_wheel
from tests.configs.test_other_engines import after, before, installed

CORE = "megatron.core."
LAYER = CORE + "transformer.transformer_layer.TransformerLayer."
MODEL = CORE + "models.gpt.gpt_model.GPTModel._postprocess"
MIXTURE = CORE + "transformer.moe."


@pytest.mark.slow
@pytest.mark.parametrize("config", ["gpt", "gpt_moe"])
@pytest.mark.parametrize("release", MEGATRON_RELEASES)
def test_releases_of_megatron(release: str, config: str) -> None:
    found = installed(megatron_wheel(release), CONFIGS / "megatron" / f"{config}.yaml")
    assert before("layer_input", LAYER + "_forward_attention", found)
    attention = after("attn_output", LAYER + "_forward_attention", found)
    assert attention.startswith("attention_output_with_bias = self.self_attention(input_layernorm_output, ")
    assert "residual = hidden_states" in before("pre_mlp_residual", LAYER + "_forward_mlp", found)
    own = "_forward_post_mlp" if release.startswith("0.16") else "_forward_mlp"
    mlp = before("mlp_output", LAYER + own, found)
    assert mlp.startswith("hidden_states = self.mlp_bda(self.training, self.config.bias_dropout_fusion)(mlp_output_")
    heads = before("attn_pre_o_proj", CORE + "transformer.attention.Attention.forward", found)
    assert heads == "output, bias = self.linear_proj(core_attn_out)"
    assert before("final_norm_output", MODEL, found).startswith("logits, _ = self.output_layer(hidden_states, weight=")
    assert after("next_token_logits", MODEL, found).startswith("logits, _ = self.output_layer(hidden_states, weight=")
    if config == "gpt_moe":
        logits = after("moe_router_logits", MIXTURE + "router.TopKRouter.forward", found)
        assert logits == "logits = self.gating(input)"
        block = "postprocess" if release.startswith("0.16") else "combine"
        output = after("moe_expert_output", MIXTURE + f"moe_layer.MoELayer.{block}", found)
        assert output == "output = self.token_dispatcher.combine_postprocess(output)"

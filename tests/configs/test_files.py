"""Every shipped config: it loads, and says dims that the comparator understands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from patcher.config.load import load_config
from patcher.config.tap_format import ConditionalDims, DumpSpec
from patcher.config.tap_inputs import parse_input
from tensortap.dims import COMMON_AXES, parse_dims
from testbed.paths import CONFIGS

FILES = sorted(CONFIGS.glob("*/*.yaml"))


def taps(file: Path) -> list[DumpSpec]:
    return [spec for part in load_config(file).files for patch in part.config.patches for _, spec in patch.dumps()]


def dims(spec: DumpSpec) -> list[str]:
    if isinstance(spec.dims, ConditionalDims):
        return [spec.dims.then, spec.dims.otherwise]
    return [spec.dims or ""]


WEIGHTS = {"moe_correction_bias"}
"""Taps of weights, which are computed from nothing. Only DeepSeek-V3 adds one to its scores."""
PASSES = {"forward", "embedding"}
"""Configs of an engine's forward pass, which go beside that of a model."""
LAYERED = {"layer_input", "attn_pre_o_proj", "attn_output", "pre_mlp_residual", "mlp_output"}


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_dims_are_understood(file: Path) -> None:
    for text in [text for spec in taps(file) for text in dims(spec)]:
        assert parse_dims(text).axes <= COMMON_AXES
        assert parse_dims(text).token_dimensions, f"{text!r} has no token dimension"


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parent.name != "faults" and file.stem not in PASSES], ids=str
)
def test_every_model_records_the_same_names(file: Path) -> None:
    """So that runs of different models' engines can be compared without a name map."""
    names = {spec.name for spec in taps(file)}
    experts = (
        {"moe_router_logits", "moe_expert_output"} if re.search("moe|mixtral|deepseek|gpt_oss", file.stem) else set()
    )
    if WEIGHTS & names:
        assert file.stem == "deepseek_v2"
    logits = set() if file.parent.name == "sglang" else {"next_token_logits"}
    assert names - WEIGHTS == LAYERED | experts | logits | {"final_norm_output"}


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parent.name != "faults" and taps(file)], ids=lambda path: path.stem
)
def test_every_tap_says_what_it_is_computed_from(file: Path) -> None:
    known = {spec.name for spec in taps(file)} | {"final_norm_output"}
    if file.stem == "embedding":  # goes beside the config of a model
        known |= LAYERED
    for spec in taps(file):
        if spec.name in WEIGHTS:
            assert not spec.inputs
            continue
        assert spec.inputs, f"{spec.name} has no inputs"
        assert {parse_input(text).name for text in spec.inputs} <= known
        if file.stem == "embedding":
            continue  # what is pooled, and how, is the model's own affair
        # The sum of the residual stream is broken up by norms there; no operation says that.
        post_norm = file.stem in ("gemma2", "gemma3") and spec.name in ("layer_input", "pre_mlp_residual")
        assert (spec.operation is None) == post_norm
        assert not (spec.operation == "sum" and len(spec.inputs) < 2)

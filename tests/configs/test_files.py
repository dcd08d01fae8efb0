"""Every shipped config: it loads, and says dims that the comparator understands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from comparator.dims import COMMON_AXES, parse_dims
from patcher.reading.config import DumpSpec, load_config
from testbed.paths import CONFIGS

FILES = sorted(CONFIGS.rglob("*.yaml"))
DIMS_IN_CODE = re.compile(r'"(t h[^"]*|t vocab[^"]*)"')
LAYERED = {"layer_input", "attn_pre_o_proj", "attn_output", "pre_mlp_residual", "mlp_output"}


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_dims_are_understood(file: Path) -> None:
    texts = [spec.dims or "" for spec in taps(file)] + DIMS_IN_CODE.findall(file.read_text(encoding="utf-8"))
    for text in texts:
        assert parse_dims(text).axes <= COMMON_AXES
        assert parse_dims(text).token_dimensions, f"{text!r} has no token dimension"


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parent.name != "faults" and file.stem != "forward"], ids=str
)
def test_every_model_records_the_same_names(file: Path) -> None:
    """So that runs of different models' engines can be compared without a name map."""
    text = file.read_text(encoding="utf-8")
    names = {spec.name for spec in taps(file)} | set(re.findall(r'dumper\.dump\(\s*"(\w+)"', text))
    experts = (
        {"moe_router_logits", "moe_expert_output"} if re.search("moe|mixtral|deepseek|gpt_oss", file.stem) else set()
    )
    logits = set() if file.parent.name == "sglang" else {"next_token_logits"}
    assert names == LAYERED | experts | logits | {"final_norm_output"}


def taps(file: Path) -> list[DumpSpec]:
    found: list[DumpSpec] = []
    for patch in load_config(file).config.patches:
        for edit in patch.edits:
            found += [one for one in (edit.dump, edit.before, edit.after, edit.wrap) if isinstance(one, DumpSpec)]
    return found

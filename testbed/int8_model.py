"""A tiny model with weights and activations in int8, in the format that vLLM serves on a CPU (compressed-tensors)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from testbed.models import ModelName, tiny_model

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}


def int8_model(name: ModelName, folder: Path) -> Path:
    """Write the tiny model of that name to ``folder``: projections in int8 with a scale for each output channel."""
    shutil.copytree(tiny_model(name), folder)
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        for key in [key for key in weights if key.endswith("_proj.weight")]:
            wide = weights[key].float()
            scale = wide.abs().amax(-1, keepdim=True) / 127
            weights[key], weights[f"{key}_scale"] = (wide / scale).round().to(torch.int8), scale
        save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": _CONFIG}))
    return folder

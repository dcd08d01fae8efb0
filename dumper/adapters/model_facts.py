"""What the folder of a model tells: numbers of its config that decide how outputs are to be read, and a digest of its
weights. Found by the flag that a server is started with; nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

FLAGS = ("--model-path", "--model", "--model_path", "--tokenizer-model-path")
FACTS = (
    "architectures", "dtype", "torch_dtype", "hidden_size", "num_attention_heads", "head_dim", "v_head_dim",
    "num_experts_per_tok", "n_group", "topk_group", "scoring_func", "topk_method", "norm_topk_prob",
    "routed_scaling_factor", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "sliding_window",
)  # fmt: skip
LARGEST_CONFIG = 1 << 20
BLOCKS, BLOCK = 256, 4096
"""Blocks of bytes that the digest takes, over all files: more would keep a server from starting."""


def model_facts(flags: Mapping[str, str]) -> dict[str, str]:
    """``model.head_dim`` and other numbers of config.json, and ``model.weights``; empty without a local folder."""
    folder = _folder(flags)
    if folder is None:
        return {}
    found = {f"model.{name}": value for name, value in _of_config(folder).items()}
    digest = weights_digest(folder)
    return found if digest is None else {**found, "model.weights": digest}


def _folder(flags: Mapping[str, str]) -> Path | None:
    for flag in FLAGS:
        path = Path(flags.get(flag) or "/dev/null/none")
        if path.is_dir():
            return path
    return None


def _of_config(folder: Path) -> dict[str, str]:
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
        return {}
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        return {}
    nested = config.get("text_config")  # of models that see as well
    for part in (nested, config.get("rope_parameters")):
        config = {**part, **config} if isinstance(part, dict) else config
    found = {name: _text(config[name]) for name in FACTS if config.get(name) is not None}
    quantisation = config.get("quantization_config")
    if isinstance(quantisation, dict) and quantisation.get("quant_method"):
        found["quantization"] = str(quantisation["quant_method"])
    return found


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def weights_digest(folder: Path) -> str | None:
    """A digest of the weight files: of their sizes and of blocks spread evenly over them; None where there are none.

    Other weights of the same shape have another digest, unless they differ only between the blocks.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")])
    files = [path for path in files if path.is_file()][:BLOCKS]
    if not files:
        return None
    each = max(BLOCKS // len(files), 1)
    digest = xxhash.xxh3_128()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for number in range(each):
                file.seek(max(size - BLOCK, 0) * number // max(each - 1, 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()

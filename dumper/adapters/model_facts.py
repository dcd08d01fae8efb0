"""What a model tells: numbers of its config that decide how outputs are to be read, and a digest of its weights. Found
by the flag that a server is started with, where nothing is loaded, or read from the model that a program has."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from dumper.adapters.quantisation import quantisation_facts

FLAGS = ("--model-path", "--model", "--model_path", "--tokenizer-model-path")
FACTS = (
    "architectures", "dtype", "torch_dtype", "num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim",
    "v_head_dim", "num_experts_per_tok", "n_group", "topk_group", "scoring_func", "topk_method", "norm_topk_prob",
    "routed_scaling_factor", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "sliding_window",
)  # fmt: skip
LARGEST_CONFIG = 1 << 20
OTHER_NAMES = {
    "num_experts_per_tok": ("moe_k", "moe_topk", "moe_top_k", "top_k_experts", "num_experts_per_token"),
    "n_group": ("n_groups", "num_expert_group"),
}
"""What configs call the same."""
BIAS = "correction_bias"
"""Ends the name of what is added to the scores for the choice of experts."""
BLOCKS, BLOCK = 256, 4096
"""Blocks of bytes that the digest takes, over all files: more would keep a server from starting."""


def model_facts(flags: Mapping[str, str]) -> dict[str, str]:
    """``model.head_dim`` and other numbers of config.json, and ``model.weights``; empty without a local folder."""
    folder = _folder(flags)
    if folder is None:
        return _prefixed(quantisation_facts(None, flags))
    found = _prefixed(_of_config(folder, flags))
    digest = weights_digest(folder)
    return found if digest is None else {**found, "model.weights": digest}


def _prefixed(found: Mapping[str, str]) -> dict[str, str]:
    return {f"model.{name}": value for name, value in found.items()}


def facts_of_model(model: Any) -> dict[str, str]:
    """The same of a model of Transformers that is loaded, without a digest; empty for what has no config.

    Only names, shapes and source are looked at, no values.
    """
    whole: Any = getattr(model, "config", None)
    config = whole.get_text_config() if hasattr(whole, "get_text_config") else whole
    if config is None:
        return {}
    rotary = getattr(config, "rope_parameters", None)
    rotary = rotary if isinstance(rotary, Mapping) else {}
    found = _named_facts(lambda name: getattr(config, name, rotary.get(name)))
    found |= quantisation_facts(getattr(whole, "quantization_config", None))
    if getattr(model, "dtype", None) is not None:
        found["dtype"] = str(model.dtype).removeprefix("torch.")
    implementation = getattr(config, "_attn_implementation", None)
    if isinstance(implementation, str):
        found["attn_implementation"] = implementation
    scoring = _biased_scoring(model)
    if scoring is not None:
        found.setdefault("topk_method", "noaux_tc")
        if scoring:
            found.setdefault("scoring_func", scoring)
    return _prefixed(found)


def _biased_scoring(model: Any) -> str | None:
    """How experts are scored where a bias is added for their choice: ``sigmoid`` or ``softmax``, as the source of the
    router says; empty where it does not, None where there is no bias."""
    names = (name for of in (model.named_buffers, model.named_parameters) for name, _ in of())
    biased = next((name for name in names if name.endswith(BIAS)), None)
    if biased is None:
        return None
    owner = biased.rpartition(".")[0]
    near = [model.get_submodule(owner)]
    near += [part for part in (getattr(near[0], name, None) for name in ("gate", "router")) if part is not None]
    near.append(model.get_submodule(owner.rpartition(".")[0]))
    for module in near:
        with contextlib.suppress(OSError, TypeError):  # no source
            source = inspect.getsource(type(module))
            if "sigmoid" in source or "softmax" in source:
                return "sigmoid" if "sigmoid" in source else "softmax"
    return ""


def _folder(flags: Mapping[str, str]) -> Path | None:
    for flag in FLAGS:
        path = Path(flags.get(flag) or "/dev/null/none")
        if path.is_dir():
            return path
    return None


def _of_config(folder: Path, flags: Mapping[str, str]) -> dict[str, str]:
    config = _read(folder / "config.json")
    if config is None:
        return quantisation_facts(None, flags)
    nested = config.get("text_config")  # of models that see as well
    for part in (nested, config.get("rope_parameters")):
        config = {**part, **config} if isinstance(part, dict) else config
    quantisation = config.get("quantization_config")
    if quantisation is None:  # a file of its own, as TensorRT-Model-Optimizer writes it
        quantisation = (_read(folder / "hf_quant_config.json") or {}).get("quantization")
    return _named_facts(config.get) | quantisation_facts(quantisation, flags)


def _read(path: Path) -> dict[str, Any] | None:
    """A config; None for one that is not there, too large, or no object."""
    if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
        return None
    found: Any = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None


def _named_facts(of: Callable[[str], Any]) -> dict[str, str]:
    """The facts that a config has, under whichever name."""
    values = {
        name: next((value for one in (name, *OTHER_NAMES.get(name, ())) if (value := of(one)) is not None), None)
        for name in FACTS
    }
    plain = (str, int, float, list, tuple)
    return {name: _text(value) for name, value in values.items() if isinstance(value, plain)}


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


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

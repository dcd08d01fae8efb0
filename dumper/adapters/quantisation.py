"""What a quantised model rounds values to on the way, beside its weights: inputs of matrix products, keys and values.

Read from the config of the model (``quantization_config`` of Transformers, whose methods each have words of their own)
and from the flags of a server. Methods that quantise weights alone (AWQ, GPTQ, GGUF, ...) round nothing on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FP8, FP8_WIDE, FP4, INT8 = "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int8"

_BY_METHOD: Mapping[str, str] = {
    "fp8": FP8, "fbgemm_fp8": FP8, "w8a8_fp8": FP8, "ptpc_fp8": FP8, "mxfp8": FP8, "w4afp8": FP8, "modelopt": FP8,
    "modelopt_fp8": FP8, "modelopt_fp4": FP4, "modelopt_mxfp8": FP8, "nvfp4": FP4, "nvfp4_online": FP4,
    "minimax_m3_nvfp4": FP4, "quark_mxfp4": FP4, "quark_int4fp8_moe": FP8, "mxfp_w4a8": FP8, "w8a8_int8": INT8,
    "blockwise_int8": INT8, "auto-round-int8": INT8, "smoothquant": INT8, "modelslim": INT8, "qoq": INT8,
}  # fmt: skip
"""What ``quant_method`` and ``--quantization`` call methods that round activations, where nothing says more."""
_BY_ALGORITHM: Mapping[str, str] = {"nvfp4": FP4, "fp4": FP4, "fp8": FP8, "float8": FP8, "int8": INT8}
"""By a part of the name of what activations are rounded to; the first one counts."""
_CACHE: Mapping[str, str] = {"fp8_e5m2": FP8_WIDE, "e5m2": FP8_WIDE, "nvfp4": FP4, "fp4": FP4, "fp8": FP8, "int8": INT8}
_DYNAMIC = ("dynamicactivation", "dynamic_activation", "int8dq", "fp8dq", "static_quant")
"""Parts of the names of torchao's ways that round activations, too."""


def quantisation_facts(config: object, flags: Mapping[str, str] | None = None) -> dict[str, str]:
    """``quantization``, ``activations`` and ``kv_cache``, those that are known.

    ``config`` is what a model's config has as ``quantization_config``: a mapping, an object with ``to_dict``, or None.
    ``flags`` are those of a server, by name.
    """
    settings, flags = _settings(config), flags or {}
    if settings.get("dequantize"):
        return {}
    asked = flags.get("--quantization", "").lower()
    method = str(settings.get("quant_method") or "").rpartition(".")[2].lower() or asked
    found = {
        "quantization": method,
        "activations": _activations(method, settings) or _of_flags(asked, flags),
        "kv_cache": _cache(settings, flags),
    }
    return {name: value for name, value in found.items() if value}


def _settings(config: object) -> Mapping[str, Any]:
    if not isinstance(config, Mapping) and callable(getattr(config, "to_dict", None)):
        config = config.to_dict()  # type: ignore[attr-defined]
    return config if isinstance(config, Mapping) else {}


def _activations(method: str, settings: Mapping[str, Any]) -> str | None:
    """What the method of a config rounds activations to; None for weights alone, and for one that is not known."""
    match method:
        case "compressed-tensors":
            groups = settings.get("config_groups")
            schemes = groups.values() if isinstance(groups, Mapping) else ()
            found = next(_of_schemes(schemes, "input_activations"), None)
        case "quark":
            found = next(_of_schemes([settings.get("global_quant_config")], "input_tensors"), None)
        case "torchao":
            found = _of_torchao(str(settings.get("quant_type")).lower())
        case "bitsandbytes":
            found = INT8 if settings.get("load_in_8bit") or settings.get("_load_in_8bit") else None
        case _:
            algorithm = str(settings.get("quant_algo") or "").lower()
            found = _of_algorithm(algorithm, settings) if algorithm else _BY_METHOD.get(method)
    return found


def _of_algorithm(algorithm: str, settings: Mapping[str, Any]) -> str | None:
    """TensorRT-Model-Optimizer's."""
    if algorithm == "mixed_precision":
        return _by_part(str(settings.get("quantized_layers")).lower(), _BY_ALGORITHM)
    return None if "a16" in algorithm or algorithm.endswith("_wo") else _by_part(algorithm, _BY_ALGORITHM)


def _of_torchao(name: str) -> str | None:
    return _by_part(name, _BY_ALGORITHM) if any(part in name for part in _DYNAMIC) else None


def _of_schemes(schemes: Any, name: str) -> Iterator[str]:
    """What tensors called ``name`` are rounded to: ``num_bits`` and ``type``, or ``dtype``."""
    for scheme in schemes:
        tensors = scheme.get(name) if isinstance(scheme, Mapping) else None
        for one in tensors if isinstance(tensors, list) else [tensors]:
            if isinstance(one, Mapping):
                text = one.get("dtype") or f"{'fp' if one.get('type') == 'float' else 'int'}{one.get('num_bits')}"
                found = _by_part(str(text).lower(), _BY_ALGORITHM)
                if found is not None:
                    yield found


def _of_flags(asked: str, flags: Mapping[str, str]) -> str | None:
    torchao = _of_torchao(flags.get("--torchao-config", "").lower())
    if torchao is not None:
        return torchao
    if flags.get("--fp8-format") or flags.get("--fp8"):  # Megatron's
        return FP8
    return _BY_METHOD.get(asked)


def _cache(settings: Mapping[str, Any], flags: Mapping[str, str]) -> str | None:
    asked = flags.get("--kv-cache-dtype", "").lower()
    if asked and asked != "auto":
        return _by_part(asked, _CACHE)
    scheme = settings.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        return next(_of_schemes([{"scheme": scheme}], "scheme"), None)
    return _by_part(str(settings.get("kv_cache_quant_algo") or scheme or "").lower(), _CACHE)


def _by_part(text: str, known: Mapping[str, str]) -> str | None:
    return next((dtype for part, dtype in known.items() if part in text), None)

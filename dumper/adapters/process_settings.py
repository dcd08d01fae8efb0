"""What a process was started with that may change its numbers: flags, environment variables, switches of torch, and
the model that a flag names."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dumper.adapters.model_facts import model_facts

MOST_SETTINGS = 200
LONGEST_VALUE = 200
"""Characters of one value that are kept."""
PREFIXES = ("SGLANG_", "SGL_", "VLLM_", "TORCH_", "TORCHDYNAMO_", "CUBLAS_", "NVTE_", "NCCL_", "FLASHINFER_", "TRITON_")
NAMES = ("NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
OF_ONE_PROCESS = ("VLLM_DIST_IDENT", "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME")
"""Made up anew at each start: they change no number, and differ in any two runs."""
SECRETS = ("key", "token", "secret", "password", "credential", "auth")


def process_settings() -> dict[str, str]:
    """Settings by name: ``--tp``, an environment variable, ``torch.float32_matmul_precision``; values as text.

    Nothing whose name looks like a secret is among them. A spawned rank has the arguments of the process that spawned
    it. ``model.head_dim``, ``model.weights``, ... are of the model's folder (``dumper.adapters.model_facts``).
    """
    flags = flags_of(sys.argv[1:])
    found = {**flags, **_environment(os.environ), **_torch_switches()}
    kept = {name: value for name, value in found.items() if not _is_secret(name)} | _facts(flags)
    return dict(sorted((name, value[:LONGEST_VALUE]) for name, value in kept.items())[:MOST_SETTINGS])


def _facts(flags: Mapping[str, str]) -> dict[str, str]:
    with contextlib.suppress(Exception):  # whatever lies in somebody else's folder
        return model_facts(flags)
    return {}


def flags_of(arguments: Sequence[str]) -> dict[str, str]:
    """Long flags to their values: ``--tp 2``, ``--tp=2`` and ``--enable-dp-attention`` (an empty value)."""
    found: dict[str, str] = {}
    flag = ""
    for argument in arguments:
        if argument.startswith("--"):
            flag, _, value = argument.partition("=")
            found[flag] = value
        elif flag:
            found[flag] = f"{found[flag]} {argument}".strip()
    return found


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in variables if name in NAMES or name.startswith(PREFIXES))
    return {name: variables[name] for name in names if name not in OF_ONE_PROCESS}


def _torch_switches() -> dict[str, str]:
    torch = sys.modules.get("torch")
    names = ("float32_matmul_precision", "default_dtype", "bf16_reduced_precision_reduction", "attention_kernels")
    found = {}
    for name in names:
        with contextlib.suppress(Exception):  # no torch, or one that is only half imported
            found[f"torch.{name}"] = str(_switch(torch, name))
    return found


def _switch(torch: Any, name: str) -> object:
    if name == "bf16_reduced_precision_reduction":
        return torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    if name == "attention_kernels":
        switches = torch.backends.cuda
        kinds = ("flash", "mem_efficient", "math", "cudnn")
        return " ".join(kind for kind in kinds if getattr(switches, f"{kind}_sdp_enabled")())
    return getattr(torch, f"get_{name}")()


def _is_secret(name: str) -> bool:
    lowered = name.lower()
    # A tokenizer's path is none.
    return any(word in lowered.replace("tokenizer", "").replace("tokens", "") for word in SECRETS)

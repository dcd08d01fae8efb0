"""Lets an unmodified SGLang wheel run without a GPU.

Loaded by every Python process of the server, spawned ranks too, because its folder is on ``PYTHONPATH``. It lets
torchvision be imported, mends one module of SGLang as it is imported, has the detokenizer forked, with
``TESTBED_FORK_RANKS=1`` the ranks too, and touches nothing else.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torchvision_operators  # type: ignore[import-not-found]  # noqa: F401  beside this file, on PYTHONPATH


def _complete_torch_native_backend(module: ModuleType) -> None:
    """Data-parallel attention on a CPU asks the attention backend for the filler of padded sequence lengths;
    SGLang's torch-native backend lacks it. And the prefill of latent attention (DeepSeek) brings keys and values that
    are not to be stored, while that backend takes keys and values from the cache alone."""
    backend = module.TorchNativeAttnBackend
    backend.get_cpu_graph_seq_len_fill_value = lambda self: 1
    from_cache = backend.forward_extend

    def forward_extend(
        self: Any, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool = True, **others: Any
    ) -> Any:
        if save_kv_cache or k is None or any(batch.extend_prefix_lens_cpu):
            return from_cache(self, q, k, v, layer, batch, save_kv_cache, **others)
        return _attention_without_cache(q, k, v, layer, batch.extend_seq_lens_cpu)

    backend.forward_extend = forward_extend


def _attention_without_cache(q: Any, k: Any, v: Any, layer: Any, lengths: Sequence[int]) -> Any:
    """Causal attention over whole sequences that lie one after the other; ``tokens x (heads * head size)``."""
    import torch

    query, key, value = (
        tensor.reshape(len(tensor), heads, size).split(list(lengths))
        for tensor, heads, size in (
            (q, layer.tp_q_head_num, layer.qk_head_dim),
            (k, layer.tp_k_head_num, layer.qk_head_dim),
            (v, layer.tp_v_head_num, layer.v_head_dim),
        )
    )
    outputs = [
        torch.nn.functional.scaled_dot_product_attention(
            *(part.transpose(0, 1) for part in parts), is_causal=True, scale=layer.scaling
        ).transpose(0, 1)
        for parts in zip(query, key, value, strict=True)
    ]
    return torch.cat(outputs).reshape(len(q), layer.tp_q_head_num * layer.v_head_dim)


def _fork_ranks(module: ModuleType) -> None:
    """Ranks are forked from the launcher instead of spawned, which saves each of them the ten seconds of imports."""
    set_environment = module._set_envs_and_config

    def set_environment_and_fork(server_args: Any) -> None:
        import multiprocessing

        set_environment(server_args)
        multiprocessing.set_start_method("fork", force=True)

    module._set_envs_and_config = set_environment_and_fork


def _fork_detokenizer(module: ModuleType) -> None:
    """The detokenizer is forked from the launcher while ranks are spawned: nothing is patched in it."""
    if not hasattr(module.Engine, "_launch_detokenizer_subprocesses"):
        return  # an older release
    launch = module.Engine._launch_detokenizer_subprocesses.__func__

    def fork(cls: type, *arguments: Any, **keywords: Any) -> Any:
        import multiprocessing

        multiprocessing.set_start_method("fork", force=True)
        try:
            return launch(cls, *arguments, **keywords)
        finally:
            multiprocessing.set_start_method("spawn", force=True)

    module.Engine._launch_detokenizer_subprocesses = classmethod(fork)


_after: dict[str, Callable[[ModuleType], None]] = {
    "sglang.srt.layers.attention.torch_native_backend": _complete_torch_native_backend,
    "sglang.srt.entrypoints.engine": _fork_ranks if os.environ.get("TESTBED_FORK_RANKS") == "1" else _fork_detokenizer,
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _after:
            return None
        complete = _after.pop(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            complete(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())

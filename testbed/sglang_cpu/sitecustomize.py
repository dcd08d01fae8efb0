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
        if batch.forward_mode.is_target_verify():
            return _verify_tree(self, q, k, v, layer, batch, save_kv_cache)
        if save_kv_cache or k is None or any(batch.extend_prefix_lens_cpu):
            return from_cache(self, q, k, v, layer, batch, save_kv_cache, **others)
        return _attention_without_cache(q, k, v, layer, batch.extend_seq_lens_cpu)

    backend.forward_extend = forward_extend


def _verify_tree(self: Any, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool) -> Any:
    """Attention of drafts: each sees what was decoded before, itself and the drafts that it follows.

    SGLang's torch-native backend has none. The lengths of the batch are those before the drafts, and its mask on a CPU
    is that of the drafts alone.
    """
    import torch

    if save_kv_cache:
        location = sys.modules["sglang.srt.mem_cache.memory_pool"].KVWriteLoc  # type: ignore[attr-defined]
        self.token_to_kv_pool.set_kv_buffer(layer, location(batch.out_cache_loc, None), k, v)
    keys, values = self.token_to_kv_pool.get_kv_buffer(layer.layer_id)
    lengths = batch.seq_lens.tolist()
    nodes = len(q) // len(lengths)
    masks = batch.spec_info.custom_mask
    masks = torch.ones(len(lengths), nodes, nodes).tril() if masks is None else masks
    masks = masks.reshape(-1)[: len(lengths) * nodes * nodes].reshape(len(lengths), nodes, nodes).bool()
    queries = q.reshape(len(lengths), nodes, layer.tp_q_head_num, layer.qk_head_dim)
    outputs = []
    for query, mask, length, request in zip(queries, masks, lengths, batch.req_pool_indices.tolist(), strict=True):
        tokens = self.req_to_token_pool.req_to_token[request, : length + nodes].long()
        seen = torch.cat([torch.ones(nodes, length, dtype=torch.bool), mask], dim=1)
        key, value = (part[tokens].to(query.dtype).transpose(0, 1) for part in (keys, values))
        output = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1), key, value, attn_mask=seen, scale=layer.scaling, enable_gqa=True
        )
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs).reshape(len(q), layer.tp_q_head_num * layer.v_head_dim)


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


def _leave_out_experts_of_others(module: ModuleType) -> None:
    """Under expert parallelism experts of other ranks have the index -1, which the native experts do not take."""
    forward = module.moe_forward_native

    def forward_own(layer: Any, x: Any, topk_output: Any, moe_runner_config: Any) -> Any:
        weights, experts, logits = topk_output
        if not (experts < 0).any():
            return forward(layer, x, topk_output, moe_runner_config)
        # One choice of each token at a time: two of one expert are counted as one there.
        weights, experts = (weights * (experts >= 0)).split(1, dim=1), experts.clamp(min=0).split(1, dim=1)
        chosen = (type(topk_output)(*one, logits) for one in zip(weights, experts, strict=True))
        return sum(forward(layer, x, one, moe_runner_config) for one in chosen)

    module.moe_forward_native = forward_own


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
    "sglang.srt.layers.moe.fused_moe_native": _leave_out_experts_of_others,
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

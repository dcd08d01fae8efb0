"""Lets an unmodified SGLang wheel run without a GPU.

Loaded by every Python process of the server, spawned ranks too, because its folder is on ``PYTHONPATH``. It lets
torchvision be imported, mends one module of SGLang as it is imported, with ``TESTBED_FORK_RANKS=1`` a second, and
touches nothing else.
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
    SGLang's torch-native backend lacks it."""
    module.TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda self: 1


def _fork_ranks(module: ModuleType) -> None:
    """Ranks are forked from the launcher instead of spawned, which saves each of them the ten seconds of imports."""
    set_environment = module._set_envs_and_config

    def set_environment_and_fork(server_args: Any) -> None:
        import multiprocessing

        set_environment(server_args)
        multiprocessing.set_start_method("fork", force=True)

    module._set_envs_and_config = set_environment_and_fork


_after: dict[str, Callable[[ModuleType], None]] = {
    "sglang.srt.layers.attention.torch_native_backend": _complete_torch_native_backend
}
if os.environ.get("TESTBED_FORK_RANKS") == "1":
    _after["sglang.srt.entrypoints.engine"] = _fork_ranks


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

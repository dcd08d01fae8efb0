"""Has vLLM fork its workers from the engine's process, where on a CPU it would spawn them.

Loaded by every Python process of the server, because its folder is on ``PYTHONPATH``. Each worker saves the imports of
all of vLLM, which are most of what it costs. The engine's process itself is spawned, as vLLM does.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import multiprocessing
import sys
from collections.abc import Sequence
from types import ModuleType

EXECUTOR = "vllm.v1.executor.multiproc_executor"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != EXECUTOR:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.get_mp_context = lambda: multiprocessing.get_context("fork")  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())

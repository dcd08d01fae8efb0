"""Lets an unmodified SGLang wheel run without a GPU.

Loaded by every Python process of the server, spawned ranks too, because its folder is on ``PYTHONPATH``. It mends
two modules as they are imported and touches nothing else.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_libraries: list[Any] = []  # torch forgets an operator when its library object goes


def _declare_torchvision_operators() -> None:
    """The published torchvision is a CUDA build, whose extension does not load beside a CPU torch; its
    ``_meta_registrations`` then fails on two operators that the extension would have declared."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _complete_torch_native_backend(module: ModuleType) -> None:
    """Data-parallel attention on a CPU asks the attention backend for the filler of padded sequence lengths;
    SGLang's torch-native backend lacks it."""
    module.TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda self: 1


_before: dict[str, Callable[[], None]] = {"torchvision": _declare_torchvision_operators}
_after: dict[str, Callable[[ModuleType], None]] = {
    "sglang.srt.layers.attention.torch_native_backend": _complete_torch_native_backend
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in _before:
            _before.pop(fullname)()
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

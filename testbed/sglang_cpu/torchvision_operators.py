"""Lets torchvision be imported beside a torch for CPUs.

The published torchvision is a CUDA build, whose extension does not load beside a CPU torch; its
``_meta_registrations`` then fails on two operators that the extension would have declared. Transformers imports
torchvision where it is installed, and SGLang needs it to be. ``requirements/install.sh`` has every process of the
development environment import this module.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class TorchvisionOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators when torchvision is about to be imported."""

    def __init__(self) -> None:
        self._libraries: list[Any] = []
        """torch forgets an operator when its library object goes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and not self._libraries:
            self._declare()
        return None

    def _declare(self) -> None:
        import torch

        if torch.version.cuda is not None:
            return  # its torchvision declares them itself
        library = torch.library.Library("torchvision", "FRAGMENT")
        self._libraries.append(library)
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if not any(type(finder).__name__ == TorchvisionOperators.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, TorchvisionOperators())

"""Scripts that are run by their path and are targets themselves: ``python train.py``, torchrun, ``runpy.run_path``.

Python asks the path hooks whether a script is something that holds a ``__main__`` module, as a folder or a zip archive
may be. Scripts that are targets are given out as that.
"""

from __future__ import annotations

import os
import sys

# importlib.machinery offers them too, but is not imported yet.
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any

    from patcher.load.process_plan import Activation


def patch_scripts(activation: Activation) -> None:
    """Have target modules patched also where they are run as scripts."""

    def hook(path: str) -> ScriptFinder:
        if path.endswith(".py"):
            file = os.path.realpath(path)
            module = activation.by_file.get(file) or activation.by_file.get(os.path.abspath(path))
            if module is not None:
                return ScriptFinder(path, module, activation)
        raise ImportError(path)

    sys.path_hooks.insert(0, hook)


class ScriptFinder:
    """Finds the ``__main__`` module that a script is."""

    def __init__(self, path: str, module: str, activation: Activation) -> None:
        self._path = path
        self._module = module
        self._activation = activation

    def find_spec(self, name: str, target: ModuleType | None = None) -> Any:
        """See ``importlib.abc.PathEntryFinder``."""
        if name != "__main__":
            return None
        file = os.path.abspath(self._path)
        spec = ModuleSpec(name, ScriptLoader(file, self._path, self._module, self._activation), origin=file)
        spec.has_location = True
        return spec

    def invalidate_caches(self) -> None:
        """See ``importlib.abc.PathEntryFinder``."""


class ScriptLoader(SourceFileLoader):
    """Gives the patched code of a script, which does not see that it is not run in the ordinary way."""

    def __init__(self, file: str, path: str, module: str, activation: Activation) -> None:
        super().__init__("__main__", file)
        self._given = path
        self._module = module
        self._activation = activation

    def get_code(self, fullname: str) -> CodeType:
        """Code of the rewritten script."""
        _tidy_path(self._given, self.path)
        return self._activation.code(self._module, self.path, lambda: self.get_data(self.path), script=True)


def _tidy_path(given: str, file: str) -> None:
    """Have ``sys.path`` hold what it would for a plain script: its folder, where the interpreter itself runs it."""
    if sys.path[:1] != [given]:
        return
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_run_module_as_main":
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(file))

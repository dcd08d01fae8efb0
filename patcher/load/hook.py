"""The import hook: which modules are to be rewritten, and the two places where their code is asked for.

Whoever loads a source file asks ``SourceFileLoader.get_code`` for its code: ordinary imports, ``runpy``, loading by
path, and loaders of others that are derived from it. There the code of targets comes from here. Loaders of another
kind (zip archives, pytest's) are met by a finder. Only the step from source to code differs from an ordinary import.
This module is imported at the start of every launched process, so it imports next to nothing; what rewrites comes in
when a module is not cached.
"""

from __future__ import annotations

import atexit
import os
import sys

# importlib.machinery offers it too, but is not imported yet.
from _frozen_importlib_external import SourceFileLoader

from patcher.load.process_plan import LAUNCH_VARIABLE, Activation, parse_plan, report_installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

PLAN_VARIABLE = "TENSORTAP_PATCH_PLAN"


_active: list[Activation] = []
"""The newest first."""
_original_get_code = SourceFileLoader.get_code


def _get_code(self: SourceFileLoader, fullname: str) -> CodeType | None:
    """``SourceFileLoader.get_code``, for targets with the patched code."""
    for activation in _active:
        module = activation.module_of(fullname, self.path)
        if module is not None:
            self._activation = activation  # type: ignore[attr-defined]
            if rewrites_itself(self):
                from patcher.load.foreign import code_through_loader

                return code_through_loader(activation, self, fullname, module)
            return activation.code(module, self.path, lambda: self.get_data(self.path))
        if activation.late and not rewrites_itself(self):
            code = activation.late_code(fullname, self.path, lambda: self.get_data(self.path))
            if code is not None:
                self._activation = activation  # type: ignore[attr-defined]
                return code
    return _original_get_code(self, fullname)


def rewrites_itself(loader: Any) -> bool:
    """Whether a loader of source files makes code in its own way."""
    return type(loader).source_to_code is not SourceFileLoader.source_to_code


class PatchingFinder:
    """Finds target modules the way the other finders do, and gives loaders of other kinds one that patches."""

    is_tensortap_finder = True

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        if sys.meta_path[0] is not self:
            # Who came later would be asked first, and we would not see what it loads.
            sys.meta_path.remove(self)
            sys.meta_path.insert(0, self)
        activation = next((one for one in _active if name in one.digests), None)
        if activation is None:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if not isinstance(spec.loader, SourceFileLoader):
                    spec.loader = _loader_for(spec, activation)
                return spec
        return None


def _loader_for(spec: ModuleSpec, activation: Activation) -> Any:
    from patcher.load.foreign import ArchiveLoader, ComposingLoader

    if type(spec.loader).__module__ != "zipimport" and (spec.origin or "").endswith(".py"):
        return ComposingLoader(spec, activation)
    return ArchiveLoader(spec, activation)


_finder = PatchingFinder()


def activate(activation: Activation) -> Activation | None:
    """Have target modules patched from now on; None when there is nothing to patch."""
    if not activation.digests and not activation.late:
        return None
    for name in activation.digests:
        if name in sys.modules:
            activation.report(
                f"{name} was imported before the patcher was active, so it runs unpatched; "
                "import it later, or use patcher.apply(CONFIG)"
            )
            activation.served.add(name)
    if not _active:
        sys.meta_path.insert(0, _finder)
        SourceFileLoader.get_code = _get_code  # type: ignore[method-assign, assignment]
    _active.insert(0, activation)
    return activation


def deactivate(activation: Activation) -> None:
    """Leave modules that are imported from now on as they are."""
    if activation in _active:
        _active.remove(activation)
        if not _active:
            sys.meta_path.remove(_finder)
            SourceFileLoader.get_code = _original_get_code  # type: ignore[method-assign]


def activate_from_file(path: str) -> None:
    """Install the hook as a plan file says. A file that cannot be read is reported, not raised."""
    try:
        with open(path, encoding="utf-8") as file:
            activation = parse_plan(file.read(), path)
    except (OSError, ValueError) as error:
        print(f"tensortap: nothing is patched in this process: {path}: {error}", file=sys.stderr, flush=True)
        return
    if activate(activation) is not None:
        if activation.files:
            from patcher.load.scripts import patch_scripts

            patch_scripts(activation)
        atexit.register(report_missed, activation)


def report_missed(activation: Activation) -> None:
    """Say which target modules another import hook has loaded in our place, and at the end of the whole command
    which none of its processes has imported."""
    for name in activation.digests:
        if name in sys.modules and name not in activation.served:
            activation.report(
                f"{name} ran unpatched: it was imported before the patcher was active, or by another import hook"
            )
    process, _, file = os.environ.get(LAUNCH_VARIABLE, "").partition(":")
    if process == str(os.getpid()) and file:
        report_installed(activation, file)

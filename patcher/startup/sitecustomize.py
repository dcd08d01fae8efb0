"""Runs at the start of every Python process of a command launched by ``python -m patcher run``.

It installs the import hook and then runs the ``sitecustomize`` that Python would have run without it.
"""

from __future__ import annotations

import os
import sys


def _activate() -> None:
    plan = os.environ.get("TENSORTAP_PATCH_PLAN")
    if not plan:
        return
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        from patcher.load import hook
    except ImportError:
        # A source checkout, or a Python that has no tensortap of its own.
        sys.path.append(root)
        from patcher.load import hook
    hook.activate_from_file(plan)


def _run_next_sitecustomize() -> None:
    # importlib.machinery offers it too, but is not imported yet.
    from _frozen_importlib_external import PathFinder

    here = os.path.dirname(__file__)
    spec = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if entry != here])
    if spec is None or spec.loader is None or _is_this_file(spec.origin):
        return
    module = type(sys)("sitecustomize")
    module.__spec__ = spec
    module.__loader__ = spec.loader
    module.__file__ = spec.origin
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _is_this_file(origin: str | None) -> bool:
    """Whether the folder is on the path a second time, by another name."""
    try:
        return origin is not None and os.path.samefile(origin, __file__)
    except OSError:
        return False


try:
    _activate()
except Exception as error:
    # Without this, Python would drop the user's own sitecustomize as well.
    print(f"tensortap: nothing is patched in this process: {error!r}", file=sys.stderr)
_run_next_sitecustomize()

"""What a launched process is told: the plan file, with a digest of what is done to each module."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from patcher.config.load import LoadedConfig, configs_to_json
from patcher.errors import PatchError
from patcher.load import cache
from patcher.load.process_plan import Activation, LateTarget, format_plan
from patcher.plan.edits import ModulePatch
from patcher.plan.planner import Plan


def make_activation(
    configs: Sequence[LoadedConfig],
    plan: Plan,
    files: Mapping[str, str] | None = None,
    taps: Mapping[str, int] | None = None,
) -> Activation:
    """What a process needs to patch by this plan; ``files`` and ``taps`` as ``Activation`` has them."""
    text = configs_to_json(configs)
    late = [LateTarget(target, _digest((target, text, _own_code()))) for target in plan.late]
    digests = {patch.module: digest(patch) for patch in plan.modules}
    return Activation(digests, text, files=files, taps=taps, late=late)


def digest(patch: ModulePatch) -> str:
    """Identifies what is done to a module, and by which version of the patcher's own code."""
    return _digest((patch, _own_code()))


def _digest(identity: object) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:20]


@lru_cache(maxsize=1)
def _own_code() -> str:
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def write_plan(activation: Activation) -> str:
    """Write the plan file, into the cache folder or, where that cannot be written, a temporary one."""
    text = format_plan(activation)
    name = hashlib.sha256(text.encode()).hexdigest()[:20] + ".plan"
    for make_folder in (_plan_folder, lambda: tempfile.mkdtemp(prefix="tensortap-")):
        try:
            folder = make_folder()
            path = os.path.join(folder, name)
            handle, temporary = tempfile.mkstemp(dir=folder)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError:
            continue
        return path
    raise PatchError("neither the cache folder nor a temporary folder can be written")


def write_planned_taps(plan_file: str, taps: Sequence[Mapping[str, Any]]) -> str:
    """Write the taps of a plan beside it, for the coverage of the run; returns the path."""
    path = f"{plan_file}.taps"
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(list(taps), file)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
    return path


def _plan_folder() -> str:
    folder = os.path.join(cache.folder(), "plans")
    os.makedirs(folder, exist_ok=True)
    return folder

"""Launching a command with configs active in it and in every Python process that it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patcher import startup
from patcher.check import Checked, check_loaded
from patcher.config.load import LoadedConfig, load_config
from patcher.errors import PatchError
from patcher.load import cache
from patcher.load.activation import make_activation, write_plan, write_planned_taps
from patcher.load.compile import compile_module
from patcher.load.hook import PLAN_VARIABLE
from patcher.load.process_plan import LAUNCH_VARIABLE, Activation
from patcher.source.modules import ModuleFile, ModuleFinder
from tensortap.command_line import say

PLANNED_VARIABLE = "TENSORTAP_PLANNED_TAPS"
"""File with the taps that the processes of the command should install (docs/contracts.md)."""


def launch(
    configs: Sequence[str | Path], command: Sequence[str], record: str | None = None, *, strict: bool = False
) -> int:
    """Check every edit, then become the command. Returns only when it refuses or cannot start it.

    ``record`` is a folder to record into; None leaves that to the environment. ``strict``: what is captured into a CUDA
    graph and would not be recorded raises.
    """
    program = shutil.which(command[0])
    if program is None:
        raise PatchError(f"run: {command[0]}: no such command")
    _refuse_isolated(command)
    loaded = [load_config(path) for path in configs]
    checked = check_loaded(loaded, ModuleFinder(path=_search_path(command)))
    if not checked.ok:
        for message in checked.errors:
            say(f"patcher: {message}", error=True)
        print("patcher: the command was not started, because not every edit lands", file=sys.stderr)
        return 1
    for note in checked.plan.notes:
        if note.warning:
            say(f"patcher: {note.message}", error=True)
    activation = _activation(loaded, checked)
    _fill_cache(checked, activation)
    cache.prune()
    plan_file = write_plan(activation)
    environment = environment_for(plan_file, os.environ)
    if record is not None:
        environment.update(TENSORTAP_ENABLE="1", TENSORTAP_DIR=os.path.abspath(record))
    elif any(activation.taps.values()) and not {"TENSORTAP_ENABLE", "TENSORTAP_CONTROL"} & environment.keys():
        print("patcher: nothing is recorded; add --record DIR, or set TENSORTAP_ENABLE=1", file=sys.stderr)
    if strict:
        environment["TENSORTAP_STRICT"] = "1"
    environment[PLANNED_VARIABLE] = write_planned_taps(plan_file, planned_taps(checked))
    environment[LAUNCH_VARIABLE] = f"{os.getpid()}:{plan_file}.{os.getpid()}.installed"
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        return subprocess.call([program, *command[1:]], env=environment)
    os.execve(program, list(command), environment)


def environment_for(plan_file: str, environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The environment in which Python processes patch by a plan file."""
    folder = str(Path(startup.__file__).parent)
    earlier = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = [folder, *(entry for entry in earlier if entry != folder)]
    return {**environment, "PYTHONPATH": os.pathsep.join(path), PLAN_VARIABLE: plan_file}


def _activation(loaded: Sequence[LoadedConfig], checked: Checked) -> Activation:
    files = {module.patch.module: os.path.realpath(module.file) for module in checked.modules}
    return make_activation(loaded, checked.plan, files, {name: len(taps) for name, taps in _taps(checked).items()})


def planned_taps(checked: Checked) -> list[dict[str, Any]]:
    """The taps that the processes of a command should install, as ``install_taps`` gets them, with their ``module``."""
    return [{**tap, "module": module} for module, taps in _taps(checked).items() for tap in taps]


def _taps(checked: Checked) -> dict[str, list[dict[str, Any]]]:
    return {
        module.patch.module: [tap.as_dict() for tap in module.rewritten.taps] if module.rewritten is not None else []
        for module in checked.modules
    }


def _fill_cache(checked: Checked, activation: Activation) -> None:
    """Compile what the check has rewritten, so that no process of the command has to."""
    for module in checked.modules:
        source = ModuleFinder().find(module.patch.module)
        if module.rewritten is None or source is None or source.file != module.file:
            continue
        name = _cache_name(source, module.file, activation)
        # On a miss, read anew after the stamp was taken: the file may have changed since the check.
        if cache.load(name) is None and source.source == module.rewritten.source:
            cache.store(name, compile_module(module.rewritten, module.file))


def _cache_name(source: ModuleFile, file: str, activation: Activation) -> str:
    stamp = cache.stamp(file, lambda: source.data)
    return cache.key(source.name, activation.digests[source.name], file, stamp)


def _search_path(command: Sequence[str]) -> list[str]:
    """Folders that the command's own modules may be in: a script's folder, the current folder."""
    scripts = [Path(part) for part in command if part.endswith(".py") and Path(part).is_file()]
    return list(dict.fromkeys([*(str(script.resolve().parent) for script in scripts), os.getcwd()]))


def _refuse_isolated(command: Sequence[str]) -> None:
    if not Path(command[0]).name.startswith("python"):
        return
    for option in command[1:]:
        if not option.startswith("-") or option.startswith("--") or option in ("-m", "-c"):
            return
        if set("IES") & set(option[1:]):
            raise PatchError(f"run: {command[0]} {option} ignores PYTHONPATH, which the patcher needs; leave it out")

"""Rewriting a module at import, when it is not in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType

from patcher.errors import PatchError
from patcher.loading.compiler import compile_module
from patcher.loading.hook import Activation
from patcher.model import ModulePatch
from patcher.plan import Plan, make_plan
from patcher.reading.config import LoadedConfig, parse_config
from patcher.rewriting.rewrite import checked, rewrite_module
from patcher.targets.modules import ModuleFinder, decode


def compile_patched(module: str, file: str, data: bytes, configs_json: str) -> CodeType:
    """Rewrite and compile a module. Raises PatchError when an edit does not land."""
    patches = {patch.module: patch for patch in _plan(configs_json).modules}
    patch = patches.get(module)
    if patch is None:
        raise PatchError("the configs name nothing in it here; was the command checked with another Python?")
    return compile_module(checked(rewrite_module(decode(data, file), patch, file)), file)


@lru_cache(maxsize=4)
def _plan(configs_json: str) -> Plan:
    configs = [parse_config(text, path) for path, text in json.loads(configs_json)]
    return make_plan(configs, ModuleFinder())


def make_activation(configs: Sequence[LoadedConfig], plan: Plan) -> Activation:
    """What a process needs to patch by this plan."""
    paths = plan.configs.paths
    configs_json = json.dumps([[path, config.document.text] for path, config in zip(paths, configs, strict=True)])
    return Activation({patch.module: digest(patch) for patch in plan.modules}, configs_json)


def digest(patch: ModulePatch) -> str:
    """Identifies what is done to a module, and by which version of the patcher's own code."""
    told = repr((patch, _own_code()))
    return hashlib.sha256(told.encode()).hexdigest()[:20]


@lru_cache(maxsize=1)
def _own_code() -> str:
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()

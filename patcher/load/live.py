"""Patching functions of modules that are imported already, and restoring them exactly.

A function object is never replaced: only its ``__code__`` is exchanged, so that closures, defaults, attributes
and whatever decorators have made of it stay as they are.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patcher.config.load import LoadedConfig, configs_from_json, load_config, parse_config
from patcher.errors import EditError, PatchError, TargetError
from patcher.generated_names import DUMPER, TAPS, WRAP_FUNCTION
from patcher.load.activation import make_activation
from patcher.load.compile import CodeKey, compile_module
from patcher.load.hook import activate, deactivate
from patcher.load.live_functions import codes_by_key, find_live, function_keys, swap_code
from patcher.load.live_sources import LiveFinder, defined_in, file_source
from patcher.load.process_plan import Activation, LateTarget
from patcher.plan.edits import ConfigTexts, ModulePatch
from patcher.plan.planner import Plan, make_plan, plan_module
from patcher.rewrite.module import RewrittenModule, checked, rewrite_module
from patcher.rewrite.taps import TapTable
from patcher.source.modules import ModuleFile, ModuleFinder

ConfigLike = str | Path
_ADDED_NAMES = (DUMPER, TAPS, WRAP_FUNCTION)


@dataclass(eq=False)
class Applied:
    """Configs that are active in this process; ``undo`` takes them out."""

    configs: tuple[LoadedConfig, ...]
    modules: tuple[str, ...]
    """Target modules that were imported already and have been patched in place."""
    pending: tuple[str, ...]
    """Target modules that are patched when they are imported; besides them, whatever comes into being later and a glob
    or an optional target names."""
    _activation: Activation | None = None

    @property
    def concerned(self) -> frozenset[str]:
        """All modules to which something has been done, or will be."""
        come = self._activation.served if self._activation is not None else ()
        return frozenset((*self.modules, *self.pending, *come))

    def undo(self) -> None:
        """Restore every function exactly, other active configs excepted. A second call does nothing."""
        if self not in _ACTIVE:
            return
        _ACTIVE.remove(self)
        if self._activation is not None:
            deactivate(self._activation)
        for name in self.modules:
            _update(name)
        for name in self.concerned - {*self.modules}:
            _take_out(name, self._activation)


@dataclass
class _LiveModule:
    """What has to be put back into a module that was patched in place."""

    module: types.ModuleType
    originals: dict[int, tuple[types.FunctionType, types.CodeType]] = field(default_factory=dict)
    """By id of the function; the functions are kept alive, so the ids stay theirs."""
    names: dict[str, Any] = field(default_factory=dict)
    """Names of the patcher that the module had already, from being patched at import."""


_ACTIVE: list[Applied] = []
_LIVE: dict[str, _LiveModule] = {}


def apply(*configs: ConfigLike) -> Applied:
    """Patch by these configs (paths, or YAML text): imported modules now, others when they are imported.

    Raises PatchError when an edit does not land; nothing is changed then.
    """
    loaded = tuple(_load(config) for config in configs)
    finder = LiveFinder()
    plan = make_plan(loaded, finder)
    if plan.errors:
        raise PatchError("\n".join(plan.errors))
    for patch in plan.modules:
        _rewritten(patch, finder)
    imported = [patch for patch in plan.modules if patch.module in sys.modules]
    pending = [patch for patch in plan.modules if patch.module not in sys.modules]
    names = [*(patch.module for patch in imported), *_loaded_otherwise(plan, loaded, finder)]
    applied = Applied(loaded, tuple(names), tuple(p.module for p in pending))
    _ACTIVE.append(applied)
    try:
        for name in names:
            _update(name)
    except PatchError:
        applied.undo()
        raise
    if pending or plan.late:
        rest = Plan(tuple(pending), (), plan.configs, plan.late)
        applied._activation = activate(make_activation(loaded, rest))
    return applied


@contextlib.contextmanager
def patched(*configs: ConfigLike) -> Iterator[Applied]:
    """``apply`` for the length of a ``with`` block."""
    applied = apply(*configs)
    try:
        yield applied
    finally:
        applied.undo()


def _loaded_otherwise(plan: Plan, configs: Sequence[LoadedConfig], finder: ModuleFinder) -> Iterator[str]:
    """Loaded modules that the configs name and that cannot be found by their names, such as those loaded by path."""
    planned = {patch.module for patch in plan.modules}
    late = [LateTarget(target, "") for target in plan.late]
    for name in sorted(sys.modules.keys() - planned) if late else ():
        source = file_source(name)
        if source is not None and _may_be_meant(source, late) and plan_module(configs, source, finder) is not None:
            yield name


def _may_be_meant(source: ModuleFile, targets: Sequence[LateTarget]) -> bool:
    try:
        return any(target.may_be_in(source.name, lambda: source.data) for target in targets)
    except TargetError:
        return False  # its file is gone


def _load(config: ConfigLike) -> LoadedConfig:
    if isinstance(config, str) and "\n" in config:
        return parse_config(config)
    return load_config(config)


def _update(name: str) -> None:
    """Bring an imported module in line with the configs that are active now."""
    _restore(name)
    patch = _combined(name)
    module = sys.modules.get(name)
    if patch is None or module is None:
        return
    live = _LiveModule(module)
    live.names = {added: module.__dict__[added] for added in _ADDED_NAMES if added in module.__dict__}
    _LIVE[name] = live
    try:
        _exchange(live, _rewritten(patch, LiveFinder()))
    except PatchError:
        _restore(name)
        raise


def _exchange(live: _LiveModule, texts: Sequence[_RewrittenText]) -> None:
    """Give the live functions of a module the code of the rewritten one, which may consist of several texts."""
    module = live.module
    prelude = _prelude([text.rewritten for text in texts])
    exec(compile(prelude, texts[-1].file, "exec", dont_inherit=True), module.__dict__)
    for text in texts:
        keys = function_keys(text.rewritten)
        functions = [
            function
            for function in find_live(module, set(keys))
            if len(texts) == 1 or function.__code__.co_filename == text.file
        ]
        missing = [key for key in keys if keys[key] and key not in {CodeKey.of(f.__code__) for f in functions}]
        if missing:
            raise EditError(
                f"{module.__name__}.{missing[0].name}: no live function has this source; was the file changed?"
            )
        captured = {CodeKey.of(function.__code__): function.__code__.co_freevars for function in functions}
        new = codes_by_key(compile_module(text.rewritten, text.file, captured))
        for function in functions:
            live.originals.setdefault(id(function), (function, function.__code__))
            swap_code(function, new[CodeKey.of(function.__code__)], module.__name__)


def _prelude(parts: Sequence[RewrittenModule]) -> str:
    """What all texts of a module need: they share one table of taps, which the last of them has as a whole."""
    own = [line for part in parts[:-1] for line in part.prelude if not line.startswith(TAPS)]
    return "\n".join(dict.fromkeys([*own, *parts[-1].prelude]))


def _restore(name: str) -> None:
    """Put back what a module was before it was patched in place."""
    live = _LIVE.pop(name, None)
    if live is None:
        return
    patched_codes = {
        id(code) for function, _ in live.originals.values() for code in codes_by_key(function.__code__).values()
    }
    originals = {key: code for _, original in live.originals.values() for key, code in codes_by_key(original).items()}
    for function, original in live.originals.values():
        function.__code__ = original
    # Functions that patched code has made meanwhile live on: they get the code they would have had.
    for function in find_live(live.module, set(originals)):
        if id(function.__code__) in patched_codes:
            swap_code(function, originals[CodeKey.of(function.__code__)], name)
    for added in _ADDED_NAMES:
        live.module.__dict__.pop(added, None)
    live.module.__dict__.update(live.names)


def _take_out(name: str, activation: Activation | None) -> None:
    """Undo for a module that was patched while it was imported: it gets the code of its own source."""
    module = sys.modules.get(name)
    if module is None or activation is None or _activation_of(module) is not activation:
        return
    _restore(name)
    patch = ModulePatch(name, (), ConfigTexts((), (), ""))
    combined = _combined(name)
    rewritten = _rewritten(combined or patch, LiveFinder())[-1].rewritten
    file = getattr(module, "__file__", None) or name
    for added in _ADDED_NAMES:
        module.__dict__.pop(added, None)
    exec(compile("\n".join(rewritten.prelude), file, "exec", dont_inherit=True), module.__dict__)
    new = codes_by_key(compile_module(rewritten, file))
    for function in find_live(module, set(new)):
        swap_code(function, new[CodeKey.of(function.__code__)], name)


def _combined(name: str) -> ModulePatch | None:
    """All that is done to a module: by the command line that launched the process, and by active configs."""
    configs = [*_launched_with(name), *(config for applied in _ACTIVE for config in applied.configs)]
    if not any(name in applied.concerned for applied in _ACTIVE):
        return None
    finder = LiveFinder()
    found = next((patch for patch in make_plan(configs, finder).modules if patch.module == name), None)
    source = file_source(name) if found is None else None
    return found if source is None else plan_module(configs, source, finder)


def _launched_with(name: str) -> list[LoadedConfig]:
    """Configs by which ``patcher run`` patched a module at import."""
    activation = _activation_of(sys.modules.get(name))
    if activation is None or not activation.plan_file:
        return []
    return configs_from_json(activation.configs_json)


def _activation_of(module: types.ModuleType | None) -> Activation | None:
    spec = getattr(module, "__spec__", None)
    activation: Activation | None = getattr(getattr(spec, "loader", None), "_activation", None)
    return activation


@dataclass(frozen=True)
class _RewrittenText:
    """One of the texts that define a module's functions, and the file that tracebacks name for it."""

    file: str
    rewritten: RewrittenModule


def _rewritten(patch: ModulePatch, finder: LiveFinder) -> list[_RewrittenText]:
    own = file_source(patch.module)
    pieces = finder.pieces(patch.module) or ([] if own is None else [own])
    if not pieces:
        raise TargetError(f"{patch.module}: its source cannot be found")
    texts: list[_RewrittenText] = []
    taps = TapTable("")
    for piece in pieces:
        taps.file = piece.file or patch.module
        part = patch
        if len(pieces) > 1:
            functions = tuple(function for function in patch.functions if defined_in(piece, function.path))
            part = replace(patch, functions=functions)
        if part.functions or len(pieces) == 1:
            texts.append(_RewrittenText(taps.file, checked(rewrite_module(piece.source, part, taps.file, taps))))
    return texts

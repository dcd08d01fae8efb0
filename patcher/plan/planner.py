"""From configs to what is to be done to each module."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patcher.config.format import EditSpec, PatchSpec, Undefined
from patcher.config.load import ConfigFile, LoadedConfig
from patcher.config.tap_format import ConditionalDims as ConditionalDimsSpec
from patcher.config.tap_format import DumpSpec, StepSpec
from patcher.config.yaml_source import Origin
from patcher.errors import PatchError, RequirementError, TargetError
from patcher.plan.edits import (
    Action,
    Code,
    ConditionalDims,
    ConfigTexts,
    Dump,
    Edit,
    FunctionPatch,
    ModulePatch,
    ShortForm,
    Step,
    Tags,
)
from patcher.source.modules import ModuleFile, ModuleFinder
from patcher.source.releases import Releases
from patcher.source.targets import ResolvedTarget, is_glob, resolve_target, targets_in_module


@dataclass(frozen=True)
class Note:
    """Something that ``check`` says about a plan besides where edits land."""

    message: str
    error: bool = False
    warning: bool = False
    """It is said when a command is launched, too."""


@dataclass(frozen=True)
class Plan:
    """All modules to rewrite, and what was found out on the way."""

    modules: tuple[ModulePatch, ...]
    notes: tuple[Note, ...]
    configs: ConfigTexts
    late: tuple[str, ...] = ()
    """Targets that may name functions in modules which come into being later."""

    @property
    def errors(self) -> tuple[str, ...]:
        """Messages of targets that do not exist and configs for other releases."""
        return tuple(note.message for note in self.notes if note.error)


@dataclass
class _Function:
    resolved: ResolvedTarget
    preambles: list[Code] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    undefined: tuple[str, ...] = ()
    count: int = 0


def make_plan(configs: Sequence[LoadedConfig], finder: ModuleFinder) -> Plan:
    """Resolve every target and number every edit. Nothing is imported and no edit is tried yet."""
    planning = _Planning(finder, lambda patch, origin: _resolved(patch, origin, finder, planning.notes))
    for config in _files(configs):
        try:
            planning.add(config)
        except RequirementError as error:
            planning.notes.append(Note(str(error), error=True))
    texts = _texts(configs)
    patches = tuple(ModulePatch(name, functions, texts) for name, functions in planning.by_module().items())
    return Plan(patches, tuple(planning.notes), texts, _late_targets(configs, finder))


def plan_module(configs: Sequence[LoadedConfig], module: ModuleFile, finder: ModuleFinder) -> ModulePatch | None:
    """What the configs have to do with a module that only its loader knows where to find; None when that is nothing."""

    def targets(patch: PatchSpec, origin: Origin) -> list[ResolvedTarget]:
        found = (targets_in_module(target, module, finder) for target in patch.target)
        return next((targets for targets in found if targets), [])

    planning = _Planning(finder, targets)
    for config in _files(configs):
        with contextlib.suppress(RequirementError):
            planning.add(config)
    functions = planning.by_module().get(module.name)
    return None if functions is None else ModulePatch(module.name, functions, _texts(configs))


def _files(configs: Sequence[LoadedConfig]) -> list[ConfigFile]:
    """The files of all configs in their order; one on which another builds is there once, however often it is named."""
    files: list[ConfigFile] = []
    known: set[tuple[Path, str]] = set()
    bases: set[tuple[Path, str]] = set()
    for loaded in configs:
        for file in loaded.files:
            identity = (Path(file.document.path).resolve(), repr(file.document.data))
            is_base = file is not loaded.files[-1]
            if identity not in (known if is_base else bases):
                files.append(file)
            known.add(identity)
            if is_base:
                bases.add(identity)
    return files


def _late_targets(configs: Sequence[LoadedConfig], finder: ModuleFinder) -> tuple[str, ...]:
    """Targets that may name functions in modules which do not exist yet: globs, and optional ones without a module."""
    late: list[str] = []
    for config in _files(configs):
        for patch in config.config.patches:
            late += [target for target in patch.target if is_glob(target)]
            if patch.optional:
                late += [target for target in patch.target if not is_glob(target) and not _has_module(target, finder)]
    return tuple(dict.fromkeys(late))


def _has_module(target: str, finder: ModuleFinder) -> bool:
    try:
        resolve_target(target, finder)
    except TargetError:
        return False
    return True


class _Planning:
    """Gathers what is to be done to each function, over all configs."""

    def __init__(self, finder: ModuleFinder, targets: Callable[[PatchSpec, Origin], list[ResolvedTarget]]) -> None:
        self.notes: list[Note] = []
        self._releases = Releases(finder)
        self._targets = targets
        self._functions: dict[tuple[str, tuple[str, ...]], _Function] = {}

    def add(self, config: ConfigFile) -> None:
        """Add a config. Raises RequirementError when it is for another release."""
        unmet = self._releases.unmet(config.config.requires)
        if unmet:
            raise RequirementError(f"{config.document.origin('requires')}: the config is for another release: {unmet}")
        untried = self._releases.unmet(config.config.tried, "it was tried with")
        if untried:
            message = f"{config.document.origin('tried')}: not tried with this release: {untried}"
            self.notes.append(Note(message, warning=True))
        for number, patch in enumerate(config.config.patches):
            unmet = self._releases.unmet(patch.requires)
            if unmet:
                self.notes.append(Note(f"{config.document.origin('patches', number)}: left out: {unmet}"))
                continue
            for resolved in self._targets(patch, config.document.origin("patches", number, "target")):
                key = (resolved.module, resolved.path)
                function = self._functions.setdefault(key, _Function(resolved))
                _add_patch(function, patch, config, number, self._releases, self.notes)

    def by_module(self) -> dict[str, tuple[FunctionPatch, ...]]:
        """The functions to which anything is done, by module."""
        modules: dict[str, tuple[FunctionPatch, ...]] = {}
        for function in self._functions.values():
            if function.edits or function.preambles:
                resolved = function.resolved
                patch = FunctionPatch(
                    resolved.name,
                    resolved.module,
                    resolved.path,
                    tuple(function.preambles),
                    tuple(function.edits),
                    function.undefined,
                )
                modules[resolved.module] = (*modules.get(resolved.module, ()), patch)
        return modules


def _resolved(patch: PatchSpec, origin: Origin, finder: ModuleFinder, notes: list[Note]) -> list[ResolvedTarget]:
    failures: list[str] = []
    for target in patch.target:
        try:
            found = resolve_target(target, finder)
        except TargetError as error:
            failures.append(f"{origin}: {error}")
            continue
        for resolved in found:
            if resolved.elsewhere:
                notes.append(Note(f"{origin}: {resolved.requested} is defined as {resolved.name}, patched there"))
        return found
    if patch.optional:
        notes.append(Note(f"{failures[0]} (optional)"))
    else:
        notes.append(Note("\n".join(failures), error=True))
    return []


def _add_patch(
    function: _Function,
    patch: PatchSpec,
    config: ConfigFile,
    number: int,
    releases: Releases,
    notes: list[Note],
) -> None:
    document = config.document
    if patch.preamble.strip():
        preamble = Code(patch.preamble, document.origin("patches", number, "preamble"))
        function.preambles.append(preamble)
        function.undefined += _allowed(patch.undefined)
    for position, spec in enumerate(patch.edits):
        function.count += 1
        where = ("patches", number, "edits", position)
        unmet = releases.unmet(spec.requires)
        if unmet:
            notes.append(
                Note(f"{document.origin(*where)}: {function.resolved.name}#{function.count} left out: {unmet}")
            )
            continue
        undefined = _allowed(patch.undefined)
        function.edits.append(_edit(spec, function.count, config, where, patch.preamble, undefined))


def _allowed(undefined: Undefined) -> tuple[str, ...]:
    return ("*",) if undefined is True else undefined


def _edit(
    spec: EditSpec,
    number: int,
    config: ConfigFile,
    where: tuple[str | int, ...],
    preamble: str,
    undefined: tuple[str, ...],
) -> Edit:
    origin = config.document.origin(*where)
    action, content = _action(spec, config, where)
    patterns: Sequence[str] = ()
    if isinstance(spec.wrap, list):
        patterns = spec.wrap
    elif spec.match is not None:
        patterns = spec.match
    elif spec.assign is not None:
        patterns = spec.assign
    place = spec.at or ("assign" if spec.assign is not None else "match")
    if place == "entry" and action in ("replace", "wrap"):
        raise PatchError(f"{origin}: 'at: entry' puts code in; there is nothing to {action}")
    return Edit(
        number=number,
        origin=origin,
        place=place,
        patterns=tuple(patterns),
        action=action,
        content=content,
        nth=spec.nth,
        inside=tuple(spec.inside or ()),
        optional=spec.optional,
        undefined=(*undefined, *_allowed(spec.undefined)),
        by_lines=spec.has_the_form_of_sglang() and isinstance(content, Code),
        preamble=preamble,
    )


_SYNONYMS: dict[str, Action] = {"prepend": "before", "append": "after", "replacement": "replace"}


def _action(spec: EditSpec, config: ConfigFile, where: tuple[str | int, ...]) -> tuple[Action, Code | ShortForm]:
    given = spec.actions()
    if spec.tags is not None:
        return "replace", Tags(_codes(spec.tags.tags, config, (*where, "tags")))
    if not given:
        return "after", _short_form(spec, config, where)
    name, value = next(iter(given.items()))
    action: Action = _SYNONYMS.get(name, name)  # type: ignore[arg-type]
    if isinstance(value, DumpSpec):
        return action, _dump(value, config, (*where, name))
    if value is True or action == "wrap":
        return action, _short_form(spec, config, where)
    return action, Code(value, config.document.origin(*where, name))


def _short_form(spec: EditSpec, config: ConfigFile, where: tuple[str | int, ...]) -> Dump | Step:
    if spec.dump is not None:
        return _dump(spec.dump, config, (*where, "dump"))
    name = "step" if spec.step is not None else "end_step"
    given = getattr(spec, name)
    if given is True:
        return Step(ends=name == "end_step")
    optional = {key: getattr(given, key, None) for key in ("batch", "condition")}
    codes = {
        key: Code(text, config.document.origin(*where, name, "if" if key == "condition" else key))
        for key, text in optional.items()
        if text is not None
    }
    tags = _codes(given.tags, config, (*where, name)) if isinstance(given, StepSpec) else ()
    return Step(ends=name == "end_step", tags=tags, **codes)


def _codes(texts: Mapping[str, str], config: ConfigFile, where: tuple[str | int, ...]) -> tuple[tuple[str, Code], ...]:
    return tuple((name, Code(text, config.document.origin(*where, name))) for name, text in texts.items())


def _dump(spec: DumpSpec, config: ConfigFile, where: tuple[str | int, ...]) -> Dump:
    document = config.document

    def code(key: str, text: str) -> Code:
        return Code(text, document.origin(*where, key))

    dims: str | ConditionalDims | None
    if isinstance(spec.dims, ConditionalDimsSpec):
        condition = Code(spec.dims.condition, document.origin(*where, "dims", "if"))
        dims = ConditionalDims(condition, spec.dims.then, spec.dims.otherwise)
    else:
        dims = spec.dims
    return Dump(
        name=spec.name,
        value=None if spec.value is None else code("value", spec.value),
        condition=None if spec.condition is None else code("if", spec.condition),
        dims=dims,
        level=spec.level,
        grad=spec.grad,
        tags=_codes(spec.tags, config, where),
        inputs=tuple(spec.inputs),
        operation=spec.operation,
    )


def _texts(configs: Sequence[LoadedConfig]) -> ConfigTexts:
    texts: dict[str, str] = {}
    for config in configs:
        path = str(Path(config.path).resolve()) if Path(config.path).exists() else config.path
        texts[path] = config.text
        texts.update(config.bases)
    digest = hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()
    return ConfigTexts(tuple(texts), tuple(texts.values()), digest)

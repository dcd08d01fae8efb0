"""Trying every edit without importing or running anything."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patcher.config.load import LoadedConfig, load_config
from patcher.errors import PatchError
from patcher.plan.edits import ModulePatch
from patcher.plan.planner import Plan, make_plan
from patcher.rewrite.module import Landing, RewrittenModule, rewrite_module
from patcher.source.modules import ModuleFinder


@dataclass(frozen=True)
class CheckedModule:
    """One module with its edits tried."""

    patch: ModulePatch
    file: str
    rewritten: RewrittenModule | None
    problems: tuple[str, ...] = ()

    @property
    def landings(self) -> tuple[Landing, ...]:
        """Where the edits landed."""
        return self.rewritten.landings if self.rewritten is not None else ()


@dataclass(frozen=True)
class Checked:
    """The outcome of a check."""

    plan: Plan
    modules: tuple[CheckedModule, ...]

    @property
    def errors(self) -> tuple[str, ...]:
        """All messages; empty when every edit lands."""
        found = list(self.plan.errors)
        for module in self.modules:
            found += module.problems
            found += module.rewritten.errors if module.rewritten is not None else ()
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether every edit that has to land does."""
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "ok": self.ok,
            "errors": list(self.errors),
            "notes": [note.message for note in self.plan.notes if not note.error],
            "edits": [
                {
                    "target": landing.target,
                    "edit": landing.edit,
                    "what": landing.summary,
                    "config": landing.origin.path,
                    "config_line": landing.origin.line,
                    "file": module.file,
                    "lines": list(landing.lines),
                    "taps": list(landing.taps),
                    "optional": landing.optional,
                    "error": landing.error,
                }
                for module in self.modules
                for landing in module.landings
            ],
        }


def check_configs(paths: Sequence[str | Path], sources: Sequence[Path] = (), path: Sequence[str] = ()) -> Checked:
    """Load configs and try all their edits; ``path`` holds folders to look for modules in first."""
    return check_loaded([load_config(config) for config in paths], ModuleFinder(sources, path))


def check_loaded(configs: Sequence[LoadedConfig], finder: ModuleFinder) -> Checked:
    """Try all edits of configs that are loaded already."""
    plan = make_plan(configs, finder)
    return Checked(plan, tuple(_check_module(patch, finder) for patch in plan.modules))


def _check_module(patch: ModulePatch, finder: ModuleFinder) -> CheckedModule:
    module = finder.find(patch.module)
    assert module is not None
    file = module.file or patch.module
    try:
        return CheckedModule(patch, file, rewrite_module(module.source, patch, file))
    except PatchError as error:
        return CheckedModule(patch, file, None, (str(error),))


def diff_text(checked: Checked) -> str:
    """Unified diff of all rewritten modules."""
    parts: list[str] = []
    for module in checked.modules:
        if module.rewritten is None:
            continue
        before = module.rewritten.source.split("\n")
        after = module.rewritten.short_text.split("\n")
        lines = difflib.unified_diff(before, after, module.file, f"{module.file} (patched)", lineterm="")
        parts += [f"{line}\n" for line in lines]
    return "".join(parts)

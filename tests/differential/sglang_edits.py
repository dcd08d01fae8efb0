"""SGLang's source patcher by ours: the four functions that its tests call, with edits of its own form."""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
import tempfile
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import patcher
from patcher.config.load import parse_config
from patcher.errors import PatchError
from patcher.plan.planner import make_plan
from patcher.rewrite.module import checked, rewrite_module
from patcher.source.modules import ModuleFinder

SAMPLE_PACKAGE = "_source_patcher_test_fixtures"
"""The package of the module that SGLang's tests make."""


def config_of(target: str, edits: Sequence[dict[str, str]], preamble: str = "", undefined: bool = False) -> str:
    """A config in SGLang's form, with what it leaves blank left out."""
    listed = [
        {key: text for key, text in edit.items() if text.strip() or key in ("match", "replacement")} for edit in edits
    ]
    for edit in listed:
        if {"prepend", "append"} & set(edit):
            edit.pop("replacement", None)
    patch = {"target": target, "edits": listed, "preamble": preamble}
    return yaml.safe_dump({"patches": [{**patch, "undefined": True} if undefined else patch]})


def apply_edits(source: str, edits: Sequence[dict[str, str]]) -> str:
    """The source after the edits of the one function in it, as it was written: without what taps make of dump calls.

    The text is not made to run, and names in it may be undefined. Raises PatchError for edits that do not land.
    """
    name = f"edited_source_{abs(hash(source)):x}"
    with tempfile.TemporaryDirectory() as folder, _on_path(folder):
        Path(folder, f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        loaded = parse_config(config_of(f"{name}.{_path_of_function(source)}", edits, undefined=True))
        plan = make_plan((loaded,), ModuleFinder())
        if plan.errors:
            raise PatchError("\n".join(plan.errors))
        rewritten = checked(rewrite_module(textwrap.dedent(source), plan.modules[0], f"{name}.py"))
    lines = rewritten.source.split("\n")
    (function,) = rewritten.functions
    lines[function.first - 1 : function.last] = [line.as_written for line in function.lines]
    return "\n".join(lines)


def _path_of_function(source: str) -> str:
    body: Sequence[ast.stmt] = ast.parse(textwrap.dedent(source)).body
    names = []
    while True:
        node = next(one for one in body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
        names.append(node.name)
        if not isinstance(node, ast.ClassDef):
            return ".".join(names)
        body = node.body


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


@dataclass
class _State:
    """What SGLang's ``patch_function`` returns."""

    applied: patcher.Applied

    def restore(self) -> None:
        self.applied.undo()


@dataclass
class StandIn:
    """Ours under the names of SGLang's functions; ``error`` is its exception, ``reach`` is called on every use."""

    error: type[Exception]
    reach: Callable[[], None]

    def apply_edits(self, *, source: str, edits: Sequence[Any]) -> str:
        self.reach()
        with self._own_error():
            return apply_edits(source, [edit.model_dump() for edit in edits])

    def patch_function(self, *, target: Callable[..., Any], edits: Sequence[Any], preamble: str = "") -> _State:
        name = f"{target.__module__}.{target.__qualname__}"
        return self._apply(config_of(name, [edit.model_dump() for edit in edits], preamble))

    def apply_patches_from_config(self, text: str, *, extra_imports: Sequence[str] = ()) -> list[_State]:
        config = yaml.safe_load(text)
        for patch in config["patches"]:
            patch["preamble"] = "\n".join([*extra_imports, patch.get("preamble", "")])
        return [self._apply(yaml.safe_dump(config))]

    def code_patcher(self, *, patches: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
        config = {"patches": []}
        for patch in patches:
            made = yaml.safe_load(config_of(patch.target, [one.model_dump() for one in patch.edits], patch.preamble))
            config["patches"] += made["patches"]
        self.reach()
        return patcher.patched(yaml.safe_dump(config))

    def _apply(self, text: str) -> _State:
        self.reach()
        with self._own_error():
            return _State(patcher.apply(text))

    @contextlib.contextmanager
    def _own_error(self) -> Iterator[None]:
        try:
            yield
        except PatchError as error:
            raise self.error(str(error)) from None


def make_importable(conftest: Path, folder: Path) -> types.ModuleType:
    """The module that SGLang's tests make, as a file that can be imported; its text is in their ``conftest.py``."""
    names = {
        node.targets[0].id: node.value.value
        for node in ast.parse(conftest.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    package = folder / SAMPLE_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "sample_module.py").write_text(str(names["SAMPLE_MODULE_SOURCE"]), encoding="utf-8")
    sys.path.insert(0, str(folder))
    return importlib.import_module(f"{SAMPLE_PACKAGE}.sample_module")

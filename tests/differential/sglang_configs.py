"""Real patch configs of SGLang's form against SGLang's own source patcher.

``python -m tests.differential.sglang_configs FILE...`` takes YAML files, or Python files that hold configs as strings
(such as ``pr_fix_toggle.py`` in SGLang and the tests of miles), applies every patch to the installed sources with both,
and says where the texts differ. The exit code is 1 when a text differs, or only SGLang's patcher lands.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from patcher.config.load import parse_config
from patcher.errors import PatchError
from patcher.plan.planner import make_plan
from patcher.rewrite.module import checked, function_lines, rewrite_module
from patcher.source.definitions import find_definitions
from patcher.source.modules import ModuleFinder

Edits = Sequence[dict[str, str]]
Editor = Callable[[str, Edits], str]
_PACKAGE = "sglang.srt.debug_utils.source_patcher"


def load_editor() -> Editor | None:
    """SGLang's function that edits a text, loaded without the rest of SGLang; None when that is not installed.

    It raises LookupError for edits that do not land.
    """
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        return None
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "sglang"}
    for name in ("sglang", "sglang.srt", "sglang.srt.debug_utils", _PACKAGE):
        stub = types.ModuleType(name)
        stub.__path__ = [str(Path(found.submodule_search_locations[0], *name.split(".")[1:]))]
        sys.modules[name] = stub
    editor: Any = importlib.import_module(f"{_PACKAGE}.source_editor")
    types_of_theirs: Any = importlib.import_module(f"{_PACKAGE}.types")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]
    sys.modules.update(kept)

    def apply(source: str, edits: Edits) -> str:
        try:
            specs = [types_of_theirs.EditSpec(**one) for one in edits]
            text: str = editor.apply_edits(source=source, edits=specs)
        except types_of_theirs.PatchApplicationError as error:
            raise LookupError(str(error)) from None
        return text

    return apply


@dataclass(frozen=True)
class Compared:
    """What both made of one patch; None where it did not land."""

    target: str
    ours: str | None
    theirs: str | None
    said: str = ""


def configs_in(file: Path) -> list[str]:
    """The configs in a file: all of it, or the strings in a Python file that are one."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return [text]
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return [string for string in strings if isinstance(string, str) and string.strip().startswith("patches:\n")]


def compare_configs(config: str, theirs: Editor) -> Iterator[Compared]:
    """Apply every patch of a config with both."""
    for patch in yaml.safe_load(config)["patches"]:
        own = yaml.safe_dump({"patches": [{**patch, "undefined": True}]})
        finder = ModuleFinder()
        plan = make_plan((parse_config(own),), finder)
        if plan.errors:
            yield Compared(patch["target"], None, None, "\n".join(plan.errors))
            continue
        (planned,) = plan.modules
        module = finder.find(planned.module)
        assert module is not None
        (definition,) = find_definitions(module.scope, planned.functions[0].path)
        first, last = function_lines(definition.node)
        source = "\n".join(module.source.split("\n")[first - 1 : last])
        text, said = None, ""
        try:
            (function,) = checked(rewrite_module(module.source, planned, str(module.file))).functions
            lines = [line.as_written for line in function.lines if not line.preamble]
            text = "\n".join(lines)
        except PatchError as error:
            said = str(error)
        try:
            expected: str | None = theirs(source, patch["edits"])
        except LookupError as error:
            expected, said = None, said or str(error)
        yield Compared(patch["target"], text, expected, said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="YAML files, or Python files that hold configs")
    files = parser.parse_args().files
    theirs = load_editor()
    if theirs is None:
        parser.error("sglang is not installed")
    bad = 0
    for file in files:
        for one in (found for text in configs_in(file) for found in compare_configs(text, theirs)):
            same = one.ours == one.theirs
            word = "both refuse it" if same and one.ours is None else "the same text" if same else "differs"
            if not same and one.theirs is None:
                word = "lands here only"
            bad += not same and one.theirs is not None
            print(f"{file.name}: {one.target}: {word}{': ' + one.said.splitlines()[0] if one.said else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

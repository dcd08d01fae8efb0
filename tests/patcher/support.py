"""Rewriting and running small modules in tests."""

from __future__ import annotations

import sys
import textwrap
import types
from pathlib import Path
from typing import Any

from patcher.check import Checked, check_loaded
from patcher.config.load import parse_config
from patcher.load.compile import compile_module
from patcher.source.modules import ModuleFinder


class RecordingTap:
    """A tap that keeps what it is given."""

    def __init__(self, entry: dict[str, Any], log: list[Any]) -> None:
        self.on = True
        self.id = entry["id"]
        self.name = entry["name"]
        self.entry = entry
        self._log = log

    def record(self, value: Any, dims: str | None = None, /, **tags: Any) -> None:
        self._log.append((self.name, value, dims, tags))

    def dump(self, name: str, value: Any, dims: str | None = None, **tags: Any) -> None:
        self._log.append((name, value, dims, tags))

    def step(self, batch: Any = None, **tags: Any) -> None:
        self._log.append(("step", batch, tags))

    def end_step(self) -> None:
        self._log.append(("end_step",))

    def failed(self) -> None:
        self._log.append((self.name, "failed", repr(sys.exc_info()[1])))


class StandInDumper:
    """What generated code needs of the dumper."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.taps: list[RecordingTap] = []
        self.steps = 0

    def install_taps(self, module: str, taps: Any, config: dict[str, Any]) -> list[RecordingTap]:
        assert set(config) == {"paths", "sha256", "texts"}
        installed = [RecordingTap(entry, self.log) for entry in taps]
        self.taps += installed
        return installed

    def dump(self, name: str, value: Any, dims: str | None = None, **tags: Any) -> None:
        self.log.append((name, value, dims, tags))

    def step(self, *args: Any) -> None:
        self.steps += 1


def check(tmp_path: Path, source: str | bytes, config: str, module: str = "mod") -> Checked:
    """Try a config on a module that holds ``source``."""
    data = source if isinstance(source, bytes) else textwrap.dedent(source).lstrip("\n").encode()
    (tmp_path / f"{module}.py").write_bytes(data)
    return check_loaded([parse_config(textwrap.dedent(config), "taps.yaml")], ModuleFinder([tmp_path]))


def rewrite(tmp_path: Path, source: str | bytes, config: str) -> str:
    """The rewritten source, without the lines that are added at the top. Every edit has to land."""
    checked = check(tmp_path, source, config)
    assert not checked.errors, "\n".join(checked.errors)
    (module,) = checked.modules
    assert module.rewritten is not None
    lines = module.rewritten.text.split("\n")
    first = module.rewritten.prelude_line
    del lines[first : first + len(module.rewritten.prelude)]
    return "\n".join(lines)


def edit(tmp_path: Path, source: str, edits: str, target: str = "mod.f") -> str:
    """Rewrite by a list of edits of one function."""
    return rewrite(tmp_path, source, edits_config(edits, target))


def edits_config(edits: str, target: str = "mod.f") -> str:
    """A whole config for a list of edits of one function."""
    body = textwrap.indent(textwrap.dedent(edits).strip("\n"), "      ")
    return f"patches:\n  - target: {target}\n    edits:\n{body}\n    undefined: true\n"


def errors(tmp_path: Path, source: str, edits: str, target: str = "mod.f") -> str:
    """The messages of a config that does not land."""
    checked = check(tmp_path, source, edits_config(edits, target))
    assert checked.errors
    return "\n".join(checked.errors)


def run_module(tmp_path: Path, source: str, config: str) -> tuple[types.ModuleType, StandInDumper]:
    """Rewrite a module and run it with a stand-in for the dumper."""
    checked = check(tmp_path, source, config)
    assert not checked.errors, "\n".join(checked.errors)
    (patched,) = checked.modules
    assert patched.rewritten is not None
    stand_in = StandInDumper()
    fake: Any = types.ModuleType("dumper")
    fake.dumper = stand_in
    module = types.ModuleType("mod")
    real = sys.modules.get("dumper")
    sys.modules["dumper"] = fake
    try:
        exec(compile_module(patched.rewritten, patched.file), module.__dict__)
    finally:
        if real is None:
            del sys.modules["dumper"]
        else:
            sys.modules["dumper"] = real
    return module, stand_in


def block(text: str) -> str:
    """A text that is written indented in a test."""
    return textwrap.dedent(text).lstrip("\n")

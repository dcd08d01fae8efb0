"""What a process is told to patch: the modules, how their code is made, and whether it was installed.

Imported at the start of every launched process, so it imports next to nothing.
"""

from __future__ import annotations

import os
import sys

from patcher.load import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType
    from typing import Any

LAUNCH_VARIABLE = "TENSORTAP_PATCH_LAUNCH"
"""Process id of the launched command and the file in which its processes note what they have installed."""
_FIRST_LINE = "tensortap patch plan 2"


class Activation:
    """The rewritten modules of one process: digests to find them in the cache, configs to make them."""

    def __init__(
        self,
        digests: dict[str, str],
        configs_json: str,
        plan_file: str = "",
        files: Mapping[str, str] | None = None,
        taps: Mapping[str, int] | None = None,
        late: Sequence[LateTarget] = (),
    ) -> None:
        """``files`` and ``taps``: per module its source file and the number of its taps; ``late``: targets in modules
        that may come into being while the process runs."""
        self.digests = digests
        self.configs_json = configs_json
        self.plan_file = plan_file
        self.files = dict(files or {})
        self.taps = dict(taps or {})
        self.late = tuple(late)
        self.by_file = {file: module for module, file in self.files.items()}
        self.served: set[str] = set()
        """Modules whose code came from here."""

    def module_of(self, name: str, file: str) -> str | None:
        """The target module that is loaded from a file under some name, or None."""
        return name if name in self.digests else self.by_file.get(file)

    def code(self, module: str, file: str, read: Callable[[], bytes], *, script: bool = False) -> CodeType:
        """Code of a module whose source file holds what ``read`` gives. Raises PatchImportError when an edit fails."""
        name = cache.key(module + (".main" if script else ""), self.digests[module], file, cache.stamp(file, read))
        code = cache.load(name)
        if code is None:
            from patcher.load.compile import compile_patched

            code = self.attempt(module, file, lambda: compile_patched(self.configs_json, module, file, read(), script))
            cache.store(name, code)
        self.note_installed(module)
        return code

    def late_code(self, module: str, file: str, read: Callable[[], bytes]) -> CodeType | None:
        """Code of a module that came into being after the check, None when nothing in it is a target.

        What does not land is reported, and the module runs as it is.
        """
        late = next((target for target in self.late if target.may_be_in(module, read)), None)
        if late is None:
            return None
        from patcher.errors import PatchError
        from patcher.load.compile import compile_late

        name = cache.key(module, late.digest, file, cache.stamp(file, read))
        code = cache.load(name)
        if code is None:
            try:
                code = compile_late(self.configs_json, module, file, read())
            except PatchError as error:
                self.report(f"{module} runs unpatched: {error}")
            if code is None:
                return None
            cache.store(name, code)
        self.note_installed(module)
        return code

    def attempt(self, module: str, file: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives. A PatchError becomes a PatchImportError and is reported."""
        from patcher.errors import PatchError, PatchImportError

        try:
            return make()
        except PatchError as error:
            self.report(f"{module} cannot be patched: {error}")
            raise PatchImportError(f"{module} cannot be patched: {error}", name=module, path=file) from None

    def note_installed(self, module: str) -> None:
        """A module has its taps, in this process."""
        self.served.add(module)
        _, _, file = os.environ.get(LAUNCH_VARIABLE, "").partition(":")
        if file and self.plan_file:
            _append(file, module)

    def report(self, message: str) -> None:
        """Say it on stderr and note it beside the plan: the importing program may swallow the exception."""
        from tensortap.printable import printable_lines

        print(printable_lines(f"tensortap: {message}"), file=sys.stderr, flush=True)
        if self.plan_file:
            _append(self.plan_file + ".errors", f"process {os.getpid()}: {message}")


def _append(path: str, line: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError:
        pass


def parse_plan(text: str, path: str) -> Activation:
    """Read a plan file; raises ValueError when it is not one. No JSON is parsed until it is needed."""
    lines = text.split("\n")
    if lines[0] != _FIRST_LINE or len(lines) < 2:
        raise ValueError("not a patch plan of this version")
    rows = [line.split("\t") for line in lines[2:] if line]
    modules = [row for row in rows if row[0]]
    return Activation(
        {name: digest for name, digest, _, _ in modules},
        lines[1],
        path,
        {name: file for name, _, _, file in modules},
        {name: int(taps) for name, _, taps, _ in modules},
        [LateTarget(target, digest) for name, digest, _, target in rows if not name],
    )


def format_plan(activation: Activation) -> str:
    """The text of a plan file: a version line, the configs as JSON, then module, digest, number of taps and file a
    line; without a module, digest and target of those that come late."""
    modules = [
        f"{name}\t{digest}\t{activation.taps.get(name, 0)}\t{activation.files.get(name, '')}"
        for name, digest in activation.digests.items()
    ]
    late = [f"\t{target.digest}\t\t{target.text}" for target in activation.late]
    return "\n".join([_FIRST_LINE, activation.configs_json, *modules, *late]) + "\n"


class LateTarget:
    """A target, perhaps with globs, in modules that may come into being while a process runs: model code that is copied
    beside its weights, modules that a program writes. ``digest``: of the configs that are about it."""

    def __init__(self, text: str, digest: str) -> None:
        self.text = text
        self.digest = digest
        self._parts = text.split(".")

    def may_be_in(self, module: str, read: Callable[[], bytes]) -> bool:
        """Whether the target may name a function in a module whose source is what ``read`` gives."""
        names = module.split(".")
        if len(names) >= len(self._parts) or not _alike(names[0], self._parts[0]):
            return False
        if not all(map(_alike, names, self._parts)):
            return False
        source = read()
        return all(literal(part).encode() in source for part in self._parts[len(names) :])


def _alike(name: str, pattern: str) -> bool:
    if not any(character in pattern for character in "*?["):
        return name == pattern
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def literal(part: str) -> str:
    """The longest piece of a part of a target that has to occur as it stands."""
    if "[" in part:
        return ""
    return max(part.replace("?", "*").split("*"), key=len)


def report_installed(activation: Activation, file: str) -> None:
    """Say how many taps the processes of a command have installed, unless it is all of them.

    ``file`` holds a module a line, and is removed.
    """
    try:
        with open(file, encoding="utf-8") as noted:
            installed = set(noted.read().split("\n"))
    except OSError:
        installed = set()
    import contextlib

    with contextlib.suppress(OSError):
        os.unlink(file)
    missing = [name for name in activation.digests if name not in installed]
    if not missing:
        return
    total = sum(activation.taps.values())
    there = sum(count for name, count in activation.taps.items() if name in installed)
    activation.report(
        f"{there} of {total} taps were installed; no process of the command imported {', '.join(missing)}"
    )

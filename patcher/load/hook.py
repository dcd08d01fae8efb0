"""The import hook: a finder that knows which modules are to be rewritten, and loaders that serve their code.

Only the step from source to code object differs from an ordinary import. This module is imported at the start
of every launched process, so it imports next to nothing; what rewrites comes in when a module is not cached.
"""

from __future__ import annotations

import atexit
import os
import sys

# importlib.machinery offers it too, but is not imported yet.
from _frozen_importlib_external import SourceFileLoader

from patcher.load import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

PLAN_VARIABLE = "TENSORTAP_PATCH_PLAN"
_FIRST_LINE = "tensortap patch plan 1"


class Activation:
    """The rewritten modules of one process: digests to find them in the cache, configs to make them."""

    def __init__(self, digests: dict[str, str], configs_json: str, plan_file: str = "") -> None:
        self.digests = digests
        self.configs_json = configs_json
        self.plan_file = plan_file
        self.served: set[str] = set()
        """Modules whose code came from here."""

    def code(self, module: str, file: str, read: Callable[[], bytes]) -> CodeType:
        """Code of a module whose source file holds what ``read`` gives. Raises PatchImportError when an edit fails."""
        self.served.add(module)
        name = cache.key(module, self.digests[module], file, cache.stamp(file, read))
        code = cache.load(name)
        if code is None:
            code = self._compile(module, file, read())
            cache.store(name, code)
        return code

    def _compile(self, module: str, file: str, data: bytes) -> CodeType:
        from patcher.errors import PatchError, PatchImportError
        from patcher.load.compile import compile_patched

        try:
            return compile_patched(module, file, data, self.configs_json)
        except PatchError as error:
            self.report(f"{module} cannot be patched: {error}")
            raise PatchImportError(f"{module} cannot be patched: {error}", name=module, path=file) from None

    def report_missed(self) -> None:
        """Say which target modules another import hook has loaded in our place."""
        for name in self.digests:
            if name in sys.modules and name not in self.served:
                self.report(
                    f"{name} ran unpatched: it was imported before the patcher was active, or by another import hook"
                )

    def report(self, message: str) -> None:
        """Say it on stderr and note it beside the plan: the importing program may swallow the exception."""
        print(f"tensortap: {message}", file=sys.stderr, flush=True)
        if self.plan_file:
            try:
                with open(self.plan_file + ".errors", "a", encoding="utf-8") as file:
                    file.write(f"process {os.getpid()}: {message}\n")
            except OSError:
                pass


class PatchingFinder:
    """Finds target modules the way the other finders do, and gives them a loader that patches."""

    is_tensortap_finder = True

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self._names = frozenset(activation.digests)

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _patching_loader(spec, self.activation)
                return spec
        return None


class PatchingSourceLoader(SourceFileLoader):
    """An ordinary source loader whose code comes from the patcher."""

    def __init__(self, original: SourceFileLoader, activation: Activation) -> None:
        super().__init__(original.name, original.path)
        self._activation = activation

    def get_code(self, fullname: str) -> CodeType:
        """Code of the rewritten module; it names the original file and lines."""
        return self._activation.code(fullname, self.path, lambda: self.get_data(self.path))


class PatchingLoader:
    """The same for other loaders that have source (zip archives): everything else is the original's."""

    def __init__(self, original: Any, spec: ModuleSpec, activation: Activation) -> None:
        self._original = original
        self._file = spec.origin or ""
        self._activation = activation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See ``importlib.abc.Loader``."""
        create = getattr(self._original, "create_module", None)
        module: ModuleType | None = create(spec) if create is not None else None
        return module

    def get_code(self, fullname: str) -> CodeType:
        """Code of the rewritten module. Raises PatchImportError when there is no source."""
        if not self._file.endswith(".py") or not hasattr(self._original, "get_data"):
            message = f"{fullname} has no Python source ({self._file or 'built in'}) and cannot be patched"
            self._activation.report(message)
            from patcher.errors import PatchImportError

            raise PatchImportError(message, name=fullname)
        return self._activation.code(fullname, self._file, lambda: self._original.get_data(self._file))

    def exec_module(self, module: ModuleType) -> None:
        """See ``importlib.abc.Loader``."""
        exec(self.get_code(module.__name__), module.__dict__)


def _patching_loader(spec: ModuleSpec, activation: Activation) -> Any:
    loader = spec.loader
    if type(loader) is SourceFileLoader:
        return PatchingSourceLoader(loader, activation)
    return PatchingLoader(loader, spec, activation)


def activate(activation: Activation) -> PatchingFinder | None:
    """Install the hook, in front of all other finders; None when there is nothing to patch."""
    if not activation.digests:
        return None
    for name in activation.digests:
        if name in sys.modules:
            activation.report(
                f"{name} was imported before the patcher was active, so it runs unpatched; "
                "import it later, or use patcher.apply(CONFIG)"
            )
            activation.served.add(name)
    finder = PatchingFinder(activation)
    sys.meta_path.insert(0, finder)
    return finder


def activate_from_file(path: str) -> None:
    """Install the hook as a plan file says. A file that cannot be read is reported, not raised."""
    try:
        with open(path, encoding="utf-8") as file:
            activation = parse_plan(file.read(), path)
    except (OSError, ValueError) as error:
        print(f"tensortap: nothing is patched in this process: {path}: {error}", file=sys.stderr, flush=True)
        return
    if activate(activation) is not None:
        atexit.register(activation.report_missed)


def parse_plan(text: str, path: str) -> Activation:
    """Read a plan file; raises ValueError when it is not one. No JSON is parsed until it is needed."""
    lines = text.split("\n")
    if lines[0] != _FIRST_LINE or len(lines) < 2:
        raise ValueError("not a patch plan of this version")
    digests = dict(line.split("\t", 1) for line in lines[2:] if line)
    return Activation(digests, lines[1], path)


def format_plan(activation: Activation) -> str:
    """The text of a plan file: a version line, the configs as JSON, then module and digest a line."""
    modules = [f"{name}\t{digest}" for name, digest in activation.digests.items()]
    return "\n".join([_FIRST_LINE, activation.configs_json, *modules]) + "\n"

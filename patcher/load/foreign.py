"""Working together with loaders that are none of Python's own for source files: those of archives, and those that
change what they load (type checkers, pytest's assertion rewriting).

The latter all parse the source of a module and compile what they have made of it. While one of them loads a target,
parsing its source gives the patched syntax tree, so that what the loader adds and what the config adds both hold. Their
caches of bytecode are left alone meanwhile: what is patched must not be found there later.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from patcher.load.process_plan import Activation


class StandInLoader:
    """A loader that does what another one does, but for what its subclasses change."""

    def __init__(self, spec: ModuleSpec, activation: Activation) -> None:
        self._original: Any = spec.loader
        self._module = spec.name
        self._file = spec.origin or ""
        self._activation = activation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See ``importlib.abc.Loader``."""
        create = getattr(self._original, "create_module", None)
        module: ModuleType | None = create(spec) if create is not None else None
        return module


class ArchiveLoader(StandInLoader):
    """For loaders whose code is that of their source (zip archives)."""

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


_FUTURE = 0
for _name in __future__.all_feature_names:
    _FUTURE |= getattr(__future__, _name).compiler_flag


def code_through_loader(activation: Activation, loader: SourceFileLoader, fullname: str, module: str) -> CodeType:
    """The code that a loader with a ``source_to_code`` of its own makes of the patched module."""
    file = loader.path
    data = loader.get_data(file)
    tree = _patched(activation, module, file, data)
    with parsed_as(file, tree) as parsed:
        code: CodeType = loader.source_to_code(data, file, *([fullname] if sys.version_info >= (3, 15) else []))
    _note(activation, module, parsed.done)
    return code


class ComposingLoader(StandInLoader):
    """Has another loader load the patched module."""

    def exec_module(self, module: ModuleType) -> None:
        """See ``importlib.abc.Loader``."""
        activation, file = self._activation, self._file
        with open(file, "rb") as source:
            data = source.read()
        tree = _patched(activation, self._module, file, data)
        with no_bytecode() as end, parsed_as(file, tree, end) as parsed:
            self._original.exec_module(module)
        _note(activation, self._module, parsed.done)


def _patched(activation: Activation, module: str, file: str, data: bytes) -> ast.Module:
    from patcher.load.compile import patched_tree  # code of archives may be cached, and then nothing is parsed

    tree: ast.Module = activation.attempt(
        module, file, lambda: patched_tree(activation.configs_json, module, file, data)
    )
    return tree


def _note(activation: Activation, module: str, installed: bool) -> None:
    if installed:
        activation.note_installed(module)
    else:
        activation.report(f"{module} runs unpatched: another import hook loads it and does not parse its source")


class parsed_as:
    """While the block runs, the first parse of a file by this thread gives a syntax tree that is there already."""

    def __init__(self, file: str, tree: ast.Module, then: Callable[[], None] | None = None) -> None:
        self.file = os.path.realpath(file)
        self.tree = tree
        self.then = then
        self.done = False

    def __enter__(self) -> parsed_as:
        _waiting.add(threading.get_ident(), self)
        return self

    def __exit__(self, *exception: object) -> None:
        _waiting.remove(threading.get_ident(), self)

    def takes(self, source: Any, filename: Any, mode: str) -> bool:
        """Whether this call of ``compile`` is the one."""
        if self.done or mode != "exec" or isinstance(source, ast.AST):
            return False
        with contextlib.suppress(TypeError, ValueError):
            return os.path.realpath(os.fsdecode(filename)) == self.file
        return False


class _Waiting:
    """Stands in for ``compile`` while any thread waits for a parse."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[int, list[parsed_as]] = {}
        self._compile: Any = builtins.compile

    def add(self, thread: int, parse: parsed_as) -> None:
        with self._lock:
            if not self._threads:
                self._compile = builtins.compile
                builtins.compile = self.compile
            self._threads.setdefault(thread, []).append(parse)

    def remove(self, thread: int, parse: parsed_as) -> None:
        with self._lock:
            waiting = self._threads.get(thread, [])
            if parse in waiting:
                waiting.remove(parse)
            if not waiting:
                self._threads.pop(thread, None)
            if not self._threads and builtins.compile == self.compile:
                builtins.compile = self._compile

    def compile(
        self,
        source: Any,
        filename: Any,
        mode: str,
        flags: int = 0,
        dont_inherit: bool = False,
        optimize: int = -1,
        **more: Any,
    ) -> Any:
        """``compile``, as the caller would have called it."""
        if not dont_inherit:
            flags |= sys._getframe(1).f_code.co_flags & _FUTURE
        thread = threading.get_ident()
        parse = next((one for one in self._threads.get(thread, ()) if one.takes(source, filename, mode)), None)
        if parse is None:
            return self._compile(source, filename, mode, flags, True, optimize, **more)
        parse.done = True
        self.remove(thread, parse)
        if parse.then is not None:
            parse.then()
        if flags & ast.PyCF_ONLY_AST:
            return parse.tree
        return self._compile(parse.tree, filename, mode, flags, True, optimize)


_waiting = _Waiting()


@contextlib.contextmanager
def no_bytecode() -> Iterator[Callable[[], None]]:
    """Neither read nor write files of bytecode, until the block ends or what it is given is called."""
    before = sys.dont_write_bytecode, sys.pycache_prefix
    changed = True

    def end() -> None:
        nonlocal changed
        if changed:
            changed = False
            sys.dont_write_bytecode, sys.pycache_prefix = before

    sys.dont_write_bytecode, sys.pycache_prefix = True, os.path.join(os.devnull, "none")
    try:
        yield end
    finally:
        end()

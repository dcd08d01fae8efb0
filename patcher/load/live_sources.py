"""The source of modules that are loaded, wherever it came from.

That is their files, or the texts in which a notebook, a shell or ``exec`` defined their functions, as far as
``linecache`` knows them, from which tracebacks have them too.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

from patcher.source.definitions import Scope, find_definitions
from patcher.source.modules import ModuleFile, ModuleFinder


class LiveFinder(ModuleFinder):
    """Finds modules as they are loaded in this process, and those that are not loaded as any finder does."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: dict[str, tuple[ModuleFile, ...]] = {}

    def find(self, name: str) -> ModuleFile | None:
        """The module, or None when there is none of that name."""
        if name not in self._known:
            found = None if name == "__main__" else self._find(name)
            self._known[name] = self._loaded(name, found) or found
        return self._known[name]

    def pieces(self, name: str) -> Sequence[ModuleFile]:
        """The texts that define a module's functions: its file, or one for each definition at its top level."""
        found = self.find(name)
        if found is None:
            return ()
        return self._pieces.get(name, (found,))

    def _loaded(self, name: str, found: ModuleFile | None) -> ModuleFile | None:
        """The module as it is loaded, where that is another one than the import system would find."""
        module = sys.modules.get(name)
        if module is None:
            # A package that nobody made, of a module that was put among the loaded ones.
            inner = found is None and any(loaded.startswith(f"{name}.") for loaded in list(sys.modules))
            return ModuleFile(name, None, (), None) if inner else None
        source = file_source(name)
        if source is not None:
            return None if found is not None and _same_file(found.file, source.file) else source
        if found is not None:
            return None
        pieces = tuple(_defined_in_texts(module))
        if not pieces:
            return None
        self._pieces[name] = pieces
        text = "\n".join(piece.source for piece in pieces)
        return ModuleFile.from_bytes(name, f"<{name}>", text.encode())


def file_source(name: str) -> ModuleFile | None:
    """The source of a module that is loaded, where its own file tells it."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    places = getattr(module, "__path__", None)
    try:
        return ModuleFile(name, file, None if places is None else tuple(places), None)
    except Exception:
        # A module may have an answer for every name, as torch.classes has, or belong to a package that is gone.
        return None


def defined_in(piece: ModuleFile, path: Sequence[str]) -> bool:
    """Whether a text defines the function at ``path``."""
    return bool(find_definitions(piece.scope, path))


def _same_file(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return False
    try:
        return os.path.samefile(one, other)
    except OSError:
        return Path(one) == Path(other)


def _defined_in_texts(module: types.ModuleType) -> Iterator[ModuleFile]:
    """One text for each function and class that is bound in a module now, with the line numbers that its code has.

    All names of the module stand at its end, so that they are known there.
    """
    names = [name for name in module.__dict__ if name.isidentifier() and not name.startswith("__")]
    known = "".join(f"\n{name} = None" for name in names)
    for name, value in list(module.__dict__.items()):
        code = _code_of(value, module)
        if code is None:
            continue
        text = "".join(linecache.getlines(code.co_filename, module.__dict__)).replace("\r\n", "\n")
        node = _definition_around(text, name, code.co_firstlineno)
        if node is not None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = text.split("\n")[first - 1 : node.end_lineno]
            padded = "\n" * (first - 1) + "\n".join(lines) + known.replace(f"\n{name} = None", "")
            yield ModuleFile.from_bytes(module.__name__, code.co_filename, padded.encode())


def _code_of(value: object, module: types.ModuleType) -> types.CodeType | None:
    """The code of a function, or of a method of a class, that was defined in the module."""
    candidates = list(value.__dict__.values()) if isinstance(value, type) else [value]
    if isinstance(value, type) and value.__module__ != module.__name__:
        return None
    for candidate in candidates:
        plain = getattr(candidate, "fget", None) or getattr(candidate, "__func__", candidate)
        function = inspect.unwrap(plain) if callable(plain) else plain
        if isinstance(function, types.FunctionType) and function.__globals__ is module.__dict__:
            return function.__code__
    return None


def _definition_around(text: str, name: str, line: int) -> ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | None:
    try:
        scope = Scope(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return None
    for node in scope.named(name):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if first <= line <= (node.end_lineno or first):
            return node
    return None

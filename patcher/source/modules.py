"""Finding modules and reading their source without importing anything."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from patcher.errors import TargetError
from patcher.source.archives import Archive, split_archive_path
from patcher.source.definitions import Scope, statements_in


@dataclass(frozen=True)
class TopLevel:
    """Everything that gives a name to something, by name, in source order."""

    defined: frozenset[str]
    """Functions and classes."""
    imported: dict[str, list[tuple[ast.Import | ast.ImportFrom, ast.alias]]] = field(default_factory=dict)
    stars: list[ast.ImportFrom] = field(default_factory=list)
    assigned: dict[str, ast.expr] = field(default_factory=dict)
    """The value of the first assignment to the name alone."""

    @classmethod
    def of(cls, body: Sequence[ast.stmt]) -> TopLevel:
        """The names of a module's body."""
        defined: set[str] = set()
        found = cls(frozenset())
        for node in statements_in(body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                found._add_import(node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        found.assigned.setdefault(target.id, node.value)
        return cls(frozenset(defined), found.imported, found.stars, found.assigned)

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                assert isinstance(node, ast.ImportFrom)
                self.stars.append(node)
                continue
            name = alias.asname or (alias.name.split(".")[0] if isinstance(node, ast.Import) else alias.name)
            self.imported.setdefault(name, []).append((node, alias))


@dataclass(frozen=True)
class ModuleFile:
    """A module that was found: where its source is, or why it has none."""

    name: str
    file: str | None
    locations: tuple[str, ...] | None
    """Folders that submodules are looked for in; None for a plain module."""
    loader: Any

    @classmethod
    def from_bytes(cls, name: str, file: str, data: bytes) -> ModuleFile:
        """A module whose source was read already."""
        found = cls(name, file, None, None)
        found.__dict__["data"] = data
        return found

    @property
    def is_package(self) -> bool:
        """Whether the module can have submodules."""
        return self.locations is not None

    @cached_property
    def source(self) -> str:
        """The source with ``\\n`` line breaks. Raises TargetError when there is none that could be patched."""
        return decode(self.data, f"{self.file}")

    @cached_property
    def data(self) -> bytes:
        """The bytes of the source file."""
        if self.file is None or not self.file.endswith(".py"):
            raise TargetError(self._no_source())
        try:
            # Not every loader of others gives the data of files.
            read = getattr(self.loader, "get_data", None)
            data: bytes = Path(self.file).read_bytes() if read is None else read(self.file)
        except OSError as error:
            raise TargetError(f"{self.file}: cannot be read: {error.strerror or error}") from None
        return data

    @cached_property
    def tree(self) -> ast.Module:
        """Syntax tree of the source."""
        try:
            return ast.parse(self.source)
        except (SyntaxError, ValueError) as error:
            raise TargetError(f"{self.file}: does not parse: {error}") from None

    @cached_property
    def scope(self) -> Scope:
        """The classes and functions that it defines."""
        return Scope(self.tree.body)

    @cached_property
    def top_level(self) -> TopLevel:
        """What the names at its top level stand for."""
        return TopLevel.of(self.tree.body)

    def _no_source(self) -> str:
        suffix = "" if self.file is None else Path(self.file).name
        if any(suffix.endswith(end) for end in importlib.machinery.EXTENSION_SUFFIXES):
            return f"{self.name} is a C extension ({self.file}): it has no Python source that could be patched"
        if suffix.endswith((".pyc", ".pyo")):
            return f"{self.name} comes only as bytecode ({self.file}): its source is needed to patch it"
        if self.file is None and self.is_package:
            return f"{self.name} is a namespace package: it has no code of its own; name a module in it"
        return f"{self.name} has no Python source ({self.file or 'built in'}) and cannot be patched"


def decode(data: bytes, file: str) -> str:
    """Source text by the file's own encoding declaration; line breaks become ``\\n``."""
    try:
        return importlib.util.decode_source(data)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise TargetError(f"{file}: cannot be decoded: {error}") from None


class ModuleFinder:
    """Finds modules along source roots (trees, wheels) and then where the import system would."""

    def __init__(self, sources: Sequence[Path] = (), path: Sequence[str] = ()) -> None:
        self.roots = [root for source in sources for root in source_roots(source)]
        self.path = list(path)
        self._known: dict[str, ModuleFile | None] = {}
        self.classes: dict[tuple[str, tuple[str, ...]], tuple[ModuleFile, tuple[str, ...]] | None] = {}
        """Where the class is that a name means in a module, as far as it was looked for."""
        self.orders: dict[tuple[str, tuple[str, ...]], list[tuple[ModuleFile, tuple[str, ...]]]] = {}
        """A class and its bases, in the order in which Python looks for methods."""

    def find(self, name: str) -> ModuleFile | None:
        """The module, or None when there is none of that name. Parents are found, not imported."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def submodules(self, package: ModuleFile) -> Iterator[str]:
        """Full names of the modules directly in a package."""
        for name in sorted(set(_submodule_names(package.locations or ()))):
            yield f"{package.name}.{name}"

    def top_level(self) -> Iterator[str]:
        """Names of all top-level modules, for messages about names that do not exist."""
        yield from _submodule_names([*self.roots, *self.path, *(entry for entry in sys.path if entry)])

    def _find(self, name: str) -> ModuleFile | None:
        parent_name, _, _ = name.rpartition(".")
        if parent_name:
            parent = self.find(parent_name)
            if parent is None or parent.locations is None:
                return None
            paths = [list(parent.locations)]
        else:
            paths = [self.roots, self.path]
        for path in paths:
            found = _on_path(name, path)
            if found is not None:
                return found
        return _by_import_system(name, paths[0] if parent_name else None)


def source_roots(source: Path) -> list[str]:
    """Folders (or the wheel) to put on the path for ``--source``; raises TargetError when there is nothing."""
    if not source.exists():
        raise TargetError(f"--source {source}: does not exist")
    if source.is_file():
        if split_archive_path(str(source)) is None:
            raise TargetError(f"--source {source}: neither a folder nor a wheel")
        return [str(source)]
    root = source.resolve()
    while (root / "__init__.py").exists() and root.parent != root:
        root = root.parent
    return [str(root), *(str(root / name) for name in ("src", "python", "lib") if (root / name).is_dir())]


def _on_path(name: str, path: Sequence[str]) -> ModuleFile | None:
    """Look along folders and archives, as the import system does but without its need of imported parents."""
    portions: list[str] = []
    for entry in path:
        archive = split_archive_path(entry)
        if archive is not None:
            found = _in_archive(name, *archive)
            if found is not None and found.file is not None:
                return found
            portions += found.locations or () if found is not None else ()
            continue
        importer: Any = pkgutil.get_importer(entry)
        spec = importer.find_spec(name) if importer is not None else None
        if spec is None:
            continue
        if spec.loader is not None:
            return _from_spec(spec)
        portions += spec.submodule_search_locations or []
    return ModuleFile(name, None, tuple(portions), None) if portions else None


def _in_archive(name: str, archive: Archive, folder: str) -> ModuleFile | None:
    last = name.rpartition(".")[2]
    found = archive.find(folder, last)
    if found is None:
        return None
    file, package = found
    locations = ("/".join(part for part in (archive.path, folder, last) if part),) if package else None
    return ModuleFile(name, file, locations, archive)


def _submodule_names(locations: Sequence[str]) -> Iterator[str]:
    folders: list[str] = []
    for entry in locations:
        archive = split_archive_path(entry)
        if archive is None:
            folders.append(entry)
        else:
            yield from archive[0].modules(archive[1])
    for info in pkgutil.iter_modules(folders):
        yield info.name
    # Packages without ``__init__``, which iter_modules leaves out.
    for entry in folders:
        path = Path(entry)
        for child in path.iterdir() if path.is_dir() else ():
            if child.is_dir() and child.name.isidentifier() and not (child / "__init__.py").exists():
                yield child.name


def _by_import_system(name: str, path: list[str] | None) -> ModuleFile | None:
    """Ask the finders of this process: built-in modules, editable installs."""
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        if find_spec is None or getattr(finder, "is_tensortap_finder", False):
            continue
        try:
            spec = find_spec(name, path)
        except (ImportError, AttributeError, KeyError, ValueError):
            continue
        if spec is not None:
            return _from_spec(spec)
    return None


def _from_spec(spec: importlib.machinery.ModuleSpec) -> ModuleFile:
    locations: Any = spec.submodule_search_locations
    if locations is not None:
        # The path object of a nested namespace package can only be iterated once its parent is imported.
        locations = tuple(getattr(locations, "_path", locations))
    file = spec.origin if spec.has_location else None
    return ModuleFile(spec.name, file, locations, spec.loader)

"""What people name on a command line: a module, a class, a function or a file, and the functions in it."""

from __future__ import annotations

from pathlib import Path

from patcher.errors import TargetError
from patcher.source.definitions import find_class, iter_functions
from patcher.source.modules import ModuleFile, ModuleFinder
from patcher.source.targets import ResolvedTarget, find_class_named, resolve_target


def functions_of(target: str, finder: ModuleFinder) -> list[ResolvedTarget]:
    """The functions that a class, a module, a file or a function name means."""
    module, path = locate(target, finder)
    if path and find_class(module.scope, path) is None:
        return resolve_target(target, finder)
    prefix = tuple(path)
    return [
        ResolvedTarget(module.name, found, ".".join((module.name, *found)))
        for found in iter_functions(module.tree.body)
        if found[: len(prefix)] == prefix
    ]


def locate(target: str, finder: ModuleFinder) -> tuple[ModuleFile, list[str]]:
    """The module that a dotted name or a path of a file begins with, and the rest of the name."""
    if target.endswith(".py") and Path(target).is_file():
        target = module_name_of(Path(target).resolve(), finder)
    parts = target.split(".")
    for count in range(len(parts), 0, -1):
        module = finder.find(".".join(parts[:count]))
        if module is not None:
            rest = parts[count:]
            found = find_class_named(module, tuple(rest), finder) if rest else None
            return (found[0], list(found[1])) if found is not None else (module, rest)
    raise TargetError(f"{target}: there is no such module (is it installed? see also --source)")


def module_name_of(file: Path, finder: ModuleFinder) -> str:
    """Dotted name by which a file can be imported. Raises TargetError when it is on no import path."""
    parts = [file.stem] if file.stem != "__init__" else []
    for folder in file.parents:
        name = ".".join(parts)
        found = finder.find(name) if name else None
        if found is not None and found.file is not None and Path(found.file).resolve() == file:
            return name
        parts.insert(0, folder.name)
    raise TargetError(f"{file}: is on no import path; name its folder with --source")


def is_importable(file: Path, finder: ModuleFinder) -> bool:
    """Whether a file can be imported by some name."""
    try:
        module_name_of(file.resolve(), finder)
    except TargetError:
        return False
    return True


def import_folder(file: Path) -> str:
    """The folder from which a file is imported: that of the outermost package that it is in."""
    folder = file.resolve().parent
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return str(folder)

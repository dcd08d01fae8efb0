"""From a dotted target to the function definitions that it means, without importing anything."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice

from patcher.errors import TargetError
from patcher.source.definitions import find_class, find_definitions, iter_functions, statements_in
from patcher.source.modules import ModuleFile, ModuleFinder

_GLOB = frozenset("*?[")
_MAX_HOPS = 20
MOST_MATCHES = 1000
"""Functions that a glob may mean."""


@dataclass(frozen=True)
class ResolvedTarget:
    """A function that a target means."""

    module: str
    path: tuple[str, ...]
    """Names from the module's top level to the function, as it is defined there."""
    requested: str
    """The target as the config says it, globs filled in."""

    @property
    def name(self) -> str:
        """Dotted name of the definition."""
        return ".".join((self.module, *self.path))

    @property
    def elsewhere(self) -> bool:
        """Whether the function is defined under another name than the one asked for (inherited, imported)."""
        return self.name != self.requested


def resolve_target(target: str, finder: ModuleFinder) -> list[ResolvedTarget]:
    """All functions that a target means: one, or for a glob any number.

    Raises TargetError, with the nearest names, when there is none.
    """
    parts = [part for part in target.split(".") if part != "<locals>"]
    if not all(parts) or not target.isprintable():
        raise TargetError(f"target {target!r}: not a dotted name")
    if any(_GLOB & set(part) for part in parts):
        found = list(dict.fromkeys(islice(_expand(parts, finder), MOST_MATCHES + 1)))
        if len(found) > MOST_MATCHES:
            raise TargetError(
                f"target {target}: this glob means more than {MOST_MATCHES} functions, {found[0].name} the first; "
                "name more of it"
            )
        if not found:
            raise TargetError(f"target {target}: nothing matches this glob")
        return found
    module, rest = _split(parts, finder)
    if not rest:
        raise TargetError(
            f"target {target}: is a module; name a function or method in it, such as " + ", ".join(_examples(module))
        )
    resolved = None if _has_no_code(module) else _lookup(module, tuple(rest), finder, 0)
    if resolved is None:
        raise TargetError(_missing(target, module, rest, finder))
    return [ResolvedTarget(resolved[0].name, resolved[1], target)]


def is_glob(target: str) -> bool:
    """Whether a target may mean several functions."""
    return bool(_GLOB & set(target))


def targets_in_module(target: str, module: ModuleFile, finder: ModuleFinder) -> list[ResolvedTarget]:
    """The functions of one module that a target means, whatever other modules there are; globs match its name too."""
    parts = [part for part in target.split(".") if part != "<locals>"]
    names = module.name.split(".")
    if len(names) >= len(parts) or not all(map(fnmatchcase, names, parts)):
        return []
    rest = parts[len(names) :]
    if any(_GLOB & set(part) for part in rest):
        return list(dict.fromkeys(_expand_in(module, rest, finder)))
    found = find_definitions(module.scope, rest)
    return [ResolvedTarget(module.name, tuple(rest), ".".join((module.name, *rest)))] if found else []


def _split(parts: Sequence[str], finder: ModuleFinder) -> tuple[ModuleFile, list[str]]:
    module: ModuleFile | None = None
    for count in range(1, len(parts) + 1):
        found = finder.find(".".join(parts[:count]))
        if found is None:
            break
        module, depth = found, count
    if module is None:
        near = difflib.get_close_matches(parts[0], list(finder.top_level()), n=3)
        raise TargetError(
            f"target {'.'.join(parts)}: there is no module {parts[0]!r}"
            + (f"; nearest: {', '.join(near)}" if near else " (is it installed? see also --source)")
        )
    return module, list(parts[depth:])


Found = tuple[ModuleFile, tuple[str, ...]]


def _lookup(module: ModuleFile, path: tuple[str, ...], finder: ModuleFinder, hops: int) -> Found | None:
    """Follow a name from a module's top level to a function definition."""
    if hops > _MAX_HOPS:
        return None
    if _has_function(module, path):
        return module, path
    for count in range(len(path) - 1, 0, -1):
        if _own_class(module, path[:count]) is not None:
            return _in_class(module, path[:count], path[count:], finder, hops)
    return next(
        (
            found
            for other, start in _followed(module, path[0], finder)
            if (found := _lookup(other, (*start, *path[1:]), finder, hops + 1)) is not None
        ),
        None,
    )


def _in_class(
    module: ModuleFile, class_path: tuple[str, ...], rest: tuple[str, ...], finder: ModuleFinder, hops: int
) -> Found | None:
    """A member of a class: its own, another name for one, or a base's, in method resolution order."""
    for owner, owner_path in _resolution_order(module, class_path, finder, hops):
        member = (*owner_path, *rest)
        if _has_function(owner, member):
            return owner, member
        node = _own_class(owner, owner_path)
        assert node is not None
        alias = _assigned_name(node.body, rest[0])
        if alias is not None:
            inside = (*owner_path, *alias, *rest[1:])
            if _has_function(owner, inside):
                return owner, inside
            return _lookup(owner, (*alias, *rest[1:]), finder, hops + 1)
    return None


def _resolution_order(module: ModuleFile, class_path: tuple[str, ...], finder: ModuleFinder, hops: int) -> list[Found]:
    """The class and its bases as far as their source can be found, in Python's order (C3)."""
    if hops:
        return _new_resolution_order(module, class_path, finder, hops)
    key = (module.name, class_path)
    if key not in finder.orders:
        finder.orders[key] = _new_resolution_order(module, class_path, finder, 0)
    return finder.orders[key]


def _new_resolution_order(
    module: ModuleFile, class_path: tuple[str, ...], finder: ModuleFinder, hops: int
) -> list[Found]:
    own: Found = (module, class_path)
    node = _own_class(module, class_path)
    if node is None or hops > _MAX_HOPS:
        return [own]
    bases: list[Found] = []
    for base in node.bases:
        found = _class_of(module, base, finder)
        if found is not None:
            bases.append(found)
    orders = [_resolution_order(base, path, finder, hops + 1) for base, path in bases]
    return [own, *_merge([*orders, bases])]


def _merge(orders: list[list[Found]]) -> list[Found]:
    merged: list[Found] = []
    keys = [[(module.name, path) for module, path in order] for order in orders]
    values = {
        key: value for order, names in zip(orders, keys, strict=True) for key, value in zip(names, order, strict=True)
    }
    while any(keys):
        head = next(
            (names[0] for names in keys if names and not any(names[0] in other[1:] for other in keys)),
            next(names[0] for names in keys if names),
        )
        merged.append(values[head])
        keys = [[name for name in names if name != head] for names in keys]
    return merged


def find_method(module: ModuleFile, class_path: tuple[str, ...], name: str, finder: ModuleFinder) -> Found | None:
    """A method of a class, perhaps inherited; None when there is none whose source can be found."""
    return _in_class(module, class_path, (name,), finder, 0)


def _own_class(module: ModuleFile, path: Sequence[str]) -> ast.ClassDef | None:
    return find_class(module.scope, path) if path[0] in module.top_level.defined else None


def _has_function(module: ModuleFile, path: Sequence[str]) -> bool:
    return path[0] in module.top_level.defined and bool(find_definitions(module.scope, path))


def find_class_named(module: ModuleFile, path: tuple[str, ...], finder: ModuleFinder) -> Found | None:
    """The class that a name means in a module, followed through imports."""
    return _find_class(module, path, finder, 0)


def _class_of(module: ModuleFile, base: ast.expr, finder: ModuleFinder) -> Found | None:
    if isinstance(base, ast.Subscript):
        base = base.value
    names = dotted_name(base)
    return None if names is None else _find_class(module, names, finder, 0)


def _find_class(module: ModuleFile, path: tuple[str, ...], finder: ModuleFinder, hops: int) -> Found | None:
    key = (module.name, path)
    if key not in finder.classes:
        found = _look_for_class(module, path, finder, hops)
        if found is None and hops:
            return None  # perhaps only because it was too far
        finder.classes[key] = found
    return finder.classes[key]


def _look_for_class(module: ModuleFile, path: tuple[str, ...], finder: ModuleFinder, hops: int) -> Found | None:
    if hops > _MAX_HOPS:
        return None
    try:
        if _own_class(module, path) is not None:
            return module, path
        candidates = list(_followed(module, path[0], finder))
    except TargetError:  # a base in a C extension
        return None
    for other, start in candidates:
        rest = (*start, *path[1:])
        if rest:
            found = _find_class(other, rest, finder, hops + 1)
            if found is not None:
                return found
    return None


def _followed(module: ModuleFile, name: str, finder: ModuleFinder) -> Iterator[Found]:
    """Where else a module-level name may come from: imports, star imports, another name for it."""
    names = module.top_level
    for node, alias in names.imported.get(name, ()):
        if isinstance(node, ast.ImportFrom):
            yield from _imported(_absolute(module, node), alias.name, finder)
        else:
            found = finder.find(alias.name if alias.asname else name)
            if found is not None:
                yield found, ()
    alias_path = dotted_name(names.assigned[name]) if name in names.assigned else None
    if alias_path is not None and alias_path != (name,):
        yield module, alias_path
    submodule = finder.find(f"{module.name}.{name}") if module.is_package else None
    if submodule is not None:
        yield submodule, ()
    for star in names.stars:
        yield from _imported(_absolute(module, star), name, finder)


def _imported(source: str, name: str, finder: ModuleFinder) -> Iterator[Found]:
    submodule = finder.find(f"{source}.{name}")
    module = finder.find(source)
    if module is not None and module.file is not None and module.file.endswith(".py"):
        yield module, (name,)
    if submodule is not None:
        yield submodule, ()


def _absolute(module: ModuleFile, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = module.name.split(".")
    drop = node.level - 1 if module.is_package else node.level
    base = base[: len(base) - drop] if drop else base
    return ".".join([*base, *([node.module] if node.module else [])])


def _assigned_name(body: Sequence[ast.stmt], name: str) -> tuple[str, ...] | None:
    """The dotted name that ``name = other`` gives another name to."""
    for node in statements_in(body):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return dotted_name(node.value)
    return None


def dotted_name(node: ast.expr) -> tuple[str, ...] | None:
    """The parts of ``a.b.c``, or None for any other expression."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        owner = dotted_name(node.value)
        return None if owner is None else (*owner, node.attr)
    return None


def _expand(parts: Sequence[str], finder: ModuleFinder) -> Iterator[ResolvedTarget]:
    first = next(index for index, part in enumerate(parts) if _GLOB & set(part))
    if first == 0:
        raise TargetError(f"target {'.'.join(parts)}: begins with a glob; name the package")
    module, rest = _split(parts[:first], finder)
    yield from _expand_in(module, [*rest, *parts[first:]], finder)


def _expand_in(module: ModuleFile, parts: Sequence[str], finder: ModuleFinder) -> Iterator[ResolvedTarget]:
    if len(parts) > 1 and module.is_package:
        for name in finder.submodules(module):
            if fnmatchcase(name.rpartition(".")[2], parts[0]):
                submodule = finder.find(name)
                if submodule is not None:
                    yield from _expand_in(submodule, parts[1:], finder)
    if module.file is None or not module.file.endswith(".py"):
        return
    if not all(_literal_part(part) in module.source for part in parts):
        return
    try:
        names = sorted(set(_class_and_function_paths(module.tree.body)))
    except TargetError:
        return
    for path in names:
        if len(path) == len(parts) - 1 and all(map(fnmatchcase, path, parts)):
            yield from _expand_member(module, path, parts[-1], finder)
        elif len(path) == len(parts) == 1 and fnmatchcase(path[0], parts[0]) and find_definitions(module.scope, path):
            yield ResolvedTarget(module.name, path, f"{module.name}.{path[0]}")


def _expand_member(
    module: ModuleFile, class_path: tuple[str, ...], member: str, finder: ModuleFinder
) -> Iterator[ResolvedTarget]:
    if _GLOB & set(member):
        own = (path for path in iter_functions(module.tree.body) if path[:-1] == class_path)
        names = sorted({path[-1] for path in own if fnmatchcase(path[-1], member)})
    else:
        names = [member]
    for name in names:
        found = _lookup(module, (*class_path, name), finder, 0)
        if found is not None:
            requested = ".".join((module.name, *class_path, name))
            yield ResolvedTarget(found[0].name, found[1], requested)


def _class_and_function_paths(body: Sequence[ast.stmt], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for node in statements_in(body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield (*prefix, node.name)
            yield from _class_and_function_paths(node.body, (*prefix, node.name))


def _literal_part(part: str) -> str:
    """The longest piece of a glob that has to occur as it stands."""
    pieces, piece = [], ""
    for character in part:
        if character in "*?[]":
            pieces.append(piece)
            piece = ""
        else:
            piece += character
    return "" if "[" in part else max([*pieces, piece], key=len)


def _examples(module: ModuleFile) -> list[str]:
    return [".".join((module.name, *path)) for path in list(iter_functions(module.tree.body))[:3]] or ["(it has none)"]


def _has_no_code(module: ModuleFile) -> bool:
    return module.file is None and module.is_package


def _missing(target: str, module: ModuleFile, rest: Sequence[str], finder: ModuleFinder) -> str:
    wanted = ".".join(rest)
    functions = [] if _has_no_code(module) else [".".join(path) for path in iter_functions(module.tree.body)]
    if not _has_no_code(module) and find_class(module.scope, rest) is not None:
        methods = [name for name in functions if name.startswith(wanted + ".")]
        return f"target {target}: is a class; name one of its methods: {', '.join(methods[:8]) or 'it has none'}"
    if module.is_package:
        submodules = [name.rpartition(".")[2] for name in finder.submodules(module)]
        near = difflib.get_close_matches(rest[0], submodules, n=3)
        if near or not functions:
            hint = f"; nearest: {', '.join(near)}" if near else ""
            return f"target {target}: there is no module {rest[0]!r} in the package {module.name}{hint}"
    near = difflib.get_close_matches(wanted, functions, n=3, cutoff=0.4)
    near += [name for name in functions if name.rpartition(".")[2] == rest[-1] and name not in near][:2]
    hint = f"; nearest: {', '.join(near[:3])}" if near else ""
    return f"target {target}: there is no function {wanted!r} in {module.file}{hint}"

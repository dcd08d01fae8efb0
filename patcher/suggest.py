"""Writing a config for a class or a model file that nobody has written one for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from patcher.check import check_loaded
from patcher.config.load import parse_config
from patcher.errors import TargetError
from patcher.source.definitions import find_class, find_definitions, statements_in
from patcher.source.locate import locate
from patcher.source.modules import ModuleFile, ModuleFinder
from patcher.source.targets import ResolvedTarget, dotted_name, find_class_named, resolve_target
from patcher.tappable import TappablePlace, function_index, self_methods, tappable_places

_LAYER_NAMES = ("layer_id", "layer_idx", "layer_index", "layer_number")
_ENTRY = ("forward", "__call__", "call")


@dataclass(frozen=True)
class SuggestedTap:
    """One edit of a suggestion."""

    target: str
    place: TappablePlace
    name: str
    value: str | None
    layer_id: str | None


def suggest_config(target: str, finder: ModuleFinder) -> str:
    """YAML of a config for a class, a module, a file or a function. Raises TargetError when there is none.

    There is a tap after each submodule call and each collective; every edit of it lands.
    """
    taps = _named(list(_taps(target, finder)))
    if not taps:
        raise TargetError(f"{target}: calls no submodule and no collective; see 'patcher list {target}'")
    text = _yaml(taps)
    checked = check_loaded([parse_config(text, "<suggestion>")], finder)
    failed = {
        (landing.target, landing.edit) for module in checked.modules for landing in module.landings if landing.error
    }
    if failed:
        numbers: dict[str, int] = {}
        kept: list[SuggestedTap] = []
        for tap in taps:
            numbers[tap.target] = numbers.get(tap.target, 0) + 1
            resolved = resolve_target(tap.target, finder)[0].name
            if (resolved, numbers[tap.target]) not in failed:
                kept.append(tap)
        text = _yaml(kept)
    return text


def _taps(target: str, finder: ModuleFinder) -> Iterator[SuggestedTap]:
    module, path = locate(target, finder)
    if not path:
        for node in statements_in(module.tree.body):
            if isinstance(node, ast.ClassDef):
                yield from _class_taps(module, (node.name,), finder)
    elif find_class(module.tree.body, path) is not None:
        yield from _class_taps(module, tuple(path), finder)
    else:
        for resolved in resolve_target(target, finder):
            found = finder.find(resolved.module)
            assert found is not None
            for place in tappable_places(function_index(found, resolved.path)):
                if place.kind in ("submodule", "collective", "call") and place.values:
                    yield from _place_taps(resolved.name, place, None)


def _class_taps(module: ModuleFile, path: tuple[str, ...], finder: ModuleFinder) -> Iterator[SuggestedTap]:
    class_name = ".".join((module.name, *path))
    layer_id = _layer_id(module, path, finder)
    todo = [name for name in _ENTRY if find_definitions(module.tree, (*path, name))]
    done: set[str] = set()
    while todo:
        method = todo.pop(0)
        if method in done:
            continue
        done.add(method)
        found = _method(class_name, method, finder)
        if found is None:
            continue
        owner, resolved = found
        index = function_index(owner, resolved.path)
        methods = {name for name in self_methods(index) if _method(class_name, name, finder) is not None}
        todo += sorted(methods - done)
        requested = f"{class_name}.{method}"
        for place in tappable_places(index):
            if place.kind == "submodule" and place.callee.removeprefix("self.") in methods:
                continue
            if place.kind in ("submodule", "collective"):
                yield from _place_taps(requested, place, layer_id)
            elif place.kind == "entry" and layer_id and method in _ENTRY and "hidden_states" in place.values:
                name = f"{_snake(path[-1])}_input"
                yield SuggestedTap(requested, replace(place, callee=name), name, "hidden_states", layer_id)


def _method(class_name: str, method: str, finder: ModuleFinder) -> tuple[ModuleFile, ResolvedTarget] | None:
    try:
        resolved = resolve_target(f"{class_name}.{method}", finder)[0]
    except TargetError:
        return None
    module = finder.find(resolved.module)
    return None if module is None else (module, resolved)


def _place_taps(target: str, place: TappablePlace, layer_id: str | None) -> Iterator[SuggestedTap]:
    callee = place.callee
    callee = callee.removeprefix("self.") if callee.startswith("self.") else callee.rpartition(".")[2]
    name = re.sub(r"\W+", "_", callee).strip("_")
    if place.form == "wrap":
        yield SuggestedTap(target, place, name, None, layer_id)
    for number, value in enumerate(place.values if place.form == "match" else ()):
        suffix = "" if number == 0 else f"_{re.sub(r'[^0-9a-zA-Z]+', '_', value)}"
        yield SuggestedTap(target, place, name + suffix, value, layer_id)


def _named(taps: Sequence[SuggestedTap]) -> list[SuggestedTap]:
    """Give taps of different functions different names; those of one function's branches share one."""
    owners: dict[str, set[str]] = {}
    for tap in taps:
        owners.setdefault(tap.name, set()).add(tap.target.rpartition(".")[0])
    return [
        replace(tap, name=f"{_snake(tap.target.split('.')[-2])}_{tap.name}") if len(owners[tap.name]) > 1 else tap
        for tap in taps
    ]


def _snake(name: str) -> str:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", spaced).lower()


def _layer_id(module: ModuleFile, path: tuple[str, ...], finder: ModuleFinder) -> str | None:
    """The expression that gives a layer's number in its methods, if the class has one."""
    try:
        resolved = resolve_target(".".join((module.name, *path, "__init__")), finder)[0]
    except TargetError:
        return None
    owner = finder.find(resolved.module)
    assert owner is not None
    init = find_definitions(owner.tree, resolved.path)[0].node
    attributes = [found for node in ast.walk(init) if (found := _self_attribute(node))]
    for name in _LAYER_NAMES:
        if any(attribute == name for attribute, _ in attributes):
            return f"self.{name}"
    for attribute, value in attributes:
        if not isinstance(value, ast.Call):
            continue
        given = {keyword.arg for keyword in value.keywords}
        callee = dotted_name(value.func)
        if callee is None or not given & set(_LAYER_NAMES):
            continue
        part = find_class_named(owner, callee, finder)
        inner = None if part is None or part[1] == path else _layer_id(part[0], part[1], finder)
        if inner is not None:
            return f"self.{attribute}.{inner.removeprefix('self.')}"
    return None


def _self_attribute(node: ast.AST) -> tuple[str, ast.expr] | None:
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    target = node.targets[0]
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        return target.attr, node.value
    return None


def _yaml(taps: Sequence[SuggestedTap]) -> str:
    lines = ["# Written by 'patcher suggest'. Add dims to each dump, such as  dims: \"t h\"", "patches:"]
    target = ""
    for tap in taps:
        if tap.target != target:
            target = tap.target
            lines += [f"  - target: {target}", "    edits:"]
        place = tap.place
        lines.append(f"      - {place.form}: {_scalar(place.pattern)}")
        if place.count > 1:
            lines.append(f"        nth: {place.nth or 'all'}")
        fields = [f"name: {_scalar(tap.name)}"]
        if tap.value is not None:
            fields.append(f"value: {_scalar(tap.value)}")
        if tap.layer_id is not None:
            fields.append(f"layer_id: {tap.layer_id}")
        lines.append(f"        dump: {{{', '.join(fields)}}}")
    return "\n".join(lines) + "\n"


def _scalar(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w.]*( = [\w.]+\(\.\.\.\))?|[A-Za-z_][\w.]*\((\.\.\.)?\)", text):
        return text
    return "'" + text.replace("'", "''") + "'"

"""The classes of a model file, the parts that their ``__init__`` makes, and which classes are whole models."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from patcher.source.definitions import find_class, find_definitions, statements_in
from patcher.source.modules import ModuleFile, ModuleFinder
from patcher.source.targets import dotted_name, find_class_named, find_method

ENTRIES = ("forward", "__call__", "call")
_CORRECTION_BIAS = "correction_bias"


@dataclass(frozen=True)
class ModelClass:
    """A class, wherever it is defined."""

    module: ModuleFile
    path: tuple[str, ...]

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """What tells classes apart."""
        return self.module.name, self.path


@dataclass(frozen=True)
class Part:
    """What an attribute of a class holds: ``self.norm = RMSNorm(...)``, or a list of equal parts."""

    attribute: str
    call: ast.Call
    """Makes the part, or one part of the list."""
    number: str | None = None
    """In a list, the variable that counts while its parts are made."""
    in_list: bool = False
    conditional: bool = False
    """Whether it is made under a condition, so that not every object has it."""

    @property
    def callee(self) -> str:
        """The last name of what is called."""
        names = dotted_name(self.call.func)
        return names[-1] if names else ""


def classes_in(body: Sequence[ast.stmt], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all classes, those within functions and classes included."""
    for node in statements_in(body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if isinstance(node, ast.ClassDef):
                yield (*prefix, node.name)
            yield from classes_in(node.body, (*prefix, node.name))


def class_called(owner: ModelClass, call: ast.Call, finder: ModuleFinder) -> ModelClass | None:
    """The class that a call in a method of ``owner`` makes an object of, if its source can be found."""
    names = dotted_name(call.func)
    if names is None:
        return None
    # A class in a function sees its neighbours first.
    for depth in range(len(owner.path) - 1, 0, -1):
        if find_class(owner.module.scope, (*owner.path[:depth], *names)) is not None:
            return ModelClass(owner.module, (*owner.path[:depth], *names))
    found = find_class_named(owner.module, names, finder)
    return None if found is None else ModelClass(*found)


def init_of(model: ModelClass, finder: ModuleFinder) -> tuple[ModelClass, ast.FunctionDef] | None:
    """The ``__init__`` of a class and the class that defines it."""
    found = find_method(model.module, model.path, "__init__", finder)
    if found is None:
        return None
    module, path = found
    node = find_definitions(module.scope, path)[0].node
    return (ModelClass(module, path[:-1]), node) if isinstance(node, ast.FunctionDef) else None


def parts_of(init: ast.FunctionDef) -> list[Part]:
    """The parts that an ``__init__`` makes, in source order."""
    lists = {part.attribute: part for part in _local_lists(init)}
    return [_from_list(part, lists) for statement in init.body for part in _parts(statement, None)]


def correction_bias(block: ModelClass, router: Part | None, finder: ModuleFinder) -> str | None:
    """Expression, in the methods of a mixture of experts, of the bias that is added to the scores for the choice of
    experts; None where there is none, or somewhere else than in the block, its router and the parts of that."""
    todo: list[tuple[str, ModelClass | None, int]] = [("self", block, 0)]
    if router is not None:
        todo.append((f"self.{router.attribute}", class_called(block, router.call, finder), 1))
    for name, model, depth in todo:
        init = None if model is None else init_of(model, finder)
        if init is None:
            continue
        parts = parts_of(init[1])
        own = next((part.attribute for part in parts if part.attribute.endswith(_CORRECTION_BIAS)), None)
        if own is not None:
            return f"{name}.{own}"
        if depth == 1:
            todo += [(f"{name}.{part.attribute}", class_called(init[0], part.call, finder), 2) for part in parts]
    return None


def _local_lists(init: ast.FunctionDef) -> Iterator[Part]:
    """Lists that are filled before they become a part: ``layers = []``, then ``layers.append(Layer(number))``."""
    for node in ast.walk(init):
        if not isinstance(node, ast.For):
            continue
        number = counter(node.target, node.iter)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "append":
                listed, made = inner.func.value, inner.args[0] if inner.args else None
                if isinstance(listed, ast.Name) and isinstance(made, ast.Call):
                    yield Part(listed.id, made, number, in_list=True)


def _from_list(part: Part, lists: Mapping[str, Part]) -> Part:
    """``self.layers = nn.ModuleList(layers)`` holds what the list does."""
    given = part.call.args[0] if part.call.args else None
    listed = lists.get(given.id) if isinstance(given, ast.Name) else None
    return part if listed is None else replace(listed, attribute=part.attribute, conditional=part.conditional)


def _parts(statement: ast.stmt, number: str | None, conditional: bool = False) -> Iterator[Part]:
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
            attribute = _own_attribute(first)
            if attribute and statement.value is not None:
                for part in _made(attribute, statement.value):
                    yield replace(part, conditional=conditional)
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        yield from _appended(statement.value, number)
    else:
        if isinstance(statement, ast.For):
            number = counter(statement.target, statement.iter)
        conditional = conditional or isinstance(statement, ast.If)
        for name in ("body", "orelse", "finalbody"):
            for inner in getattr(statement, name, None) or ():
                yield from _parts(inner, number, conditional)


def _made(attribute: str, value: ast.expr) -> Iterator[Part]:
    listed = list(_listed(value))
    if listed:
        call, number = listed[0]
        yield Part(attribute, call, number, in_list=True)
    elif isinstance(value, ast.Call):
        yield Part(attribute, value)
    elif isinstance(value, ast.IfExp):
        yield from _made(attribute, value.body if isinstance(value.body, ast.Call) else value.orelse)


def _appended(call: ast.Call, number: str | None) -> Iterator[Part]:
    """``self.layers.append(Layer(number))``."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "append" and len(call.args) == 1:
        attribute = _own_attribute(call.func.value)
        if attribute and isinstance(call.args[0], ast.Call):
            yield Part(attribute, call.args[0], number, in_list=True)


def _listed(value: ast.expr) -> Iterator[tuple[ast.Call, str | None]]:
    """Calls that make the parts of a list, in comprehensions, list displays and functions that make one by number."""
    for node in ast.walk(value):
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)) and isinstance(node.elt, ast.Call):
            first = node.generators[0]
            yield node.elt, counter(first.target, first.iter)
        elif isinstance(node, ast.Lambda) and isinstance(node.body, ast.Call):
            yield node.body, node.args.args[0].arg if node.args.args else None
        elif isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Call):
            yield node.elts[0], None


def counter(target: ast.expr, iterated: ast.expr) -> str | None:
    """The variable that counts in ``for target in iterated``, if one does."""
    if not isinstance(iterated, ast.Call) or not isinstance(iterated.func, ast.Name):
        return None
    if iterated.func.id == "range" and isinstance(target, ast.Name):
        return target.id
    if iterated.func.id == "enumerate" and isinstance(target, ast.Tuple) and isinstance(target.elts[0], ast.Name):
        return target.elts[0].id
    return None


def _own_attribute(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


_ENGINES = {"sglang.": "sglang/forward", "vllm.": "vllm/forward"}


@dataclass(frozen=True)
class StepPlace:
    """The function whose call is a step."""

    model: ModelClass
    method: str
    batch: str | None
    """Expression that tells which row is which token."""


def engine_config(module: ModuleFile) -> str | None:
    """The shipped config that makes a step of each forward pass of the engine that a model belongs to."""
    return next((config for prefix, config in _ENGINES.items() if module.name.startswith(prefix)), None)


def whole_models(module: ModuleFile, finder: ModuleFinder) -> list[StepPlace]:
    """The models of a file: classes with parts that no other class of the file has as a part."""
    parts: dict[tuple[str, ...], set[str]] = {}
    for path in classes_in(module.tree.body):
        found = init_of(ModelClass(module, path), finder)
        parts[path] = {part.callee for part in parts_of(found[1])} if found is not None else set()
    names = {path[-1] for path in parts}
    places: list[StepPlace] = []
    for path, made in parts.items():
        is_part = any(path[-1] in others for owner, others in parts.items() if owner != path)
        method = next((name for name in ENTRIES if find_definitions(module.scope, (*path, name))), None)
        if not is_part and made & names and method is not None:
            places.append(StepPlace(ModelClass(module, path), method, batch_of(module, (*path, method))))
    # Where some take tokens, what takes none is a part that is made by another name: from a table of layer classes.
    return [place for place in places if place.batch is not None] or places


def batch_of(module: ModuleFile, path: tuple[str, ...]) -> str | None:
    """Expression, in a function, that tells which row is which token; None where its parameters do not."""
    arguments = find_definitions(module.scope, path)[0].node.args
    names = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    if "forward_batch" in names:
        return "forward_batch"
    return "$arguments" if {"input_ids", "inputs_embeds"} & names else None

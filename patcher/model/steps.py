"""Where the forward pass of a whole model begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

from patcher.model.parts import ENTRIES, ModelClass, classes_in, init_of, parts_of
from patcher.source.definitions import find_definitions
from patcher.source.modules import ModuleFile, ModuleFinder

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
            places.append(StepPlace(ModelClass(module, path), method, _batch(module, (*path, method))))
    return places


def _batch(module: ModuleFile, path: tuple[str, ...]) -> str | None:
    arguments = find_definitions(module.scope, path)[0].node.args
    names = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    if "forward_batch" in names:
        return "forward_batch"
    return "$arguments" if {"input_ids", "inputs_embeds"} & names else None

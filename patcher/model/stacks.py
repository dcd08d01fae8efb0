"""Models of an encoder and a decoder: each is called with tokens of its own, so that each call is a step."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from patcher.model.loops import loops_in
from patcher.model.parts import ENTRIES, ModelClass, batch_of, class_called, classes_in, init_of, parts_of
from patcher.source.definitions import find_definitions
from patcher.source.modules import ModuleFile, ModuleFinder

_MOST_STEPS = 6
"""From a whole model to its encoder."""
_BOTH = ("encoder", "decoder")


@dataclass(frozen=True)
class Stack:
    """An encoder, a decoder, or a class that is either."""

    method: str
    """Whose call is a step."""
    batch: str | None
    """Expression that tells which row is which token; None where the source does not."""
    which: str
    """Expression that says which of both an object is."""
    loop: tuple[str, str] | None = None
    """The first line of the loop over its layers, and the name of what goes through them."""


class Stacks:
    """The encoders and decoders of a module, by their paths."""

    def __init__(self, module: ModuleFile, finder: ModuleFinder) -> None:
        self._module, self._finder = module, finder
        self.found: dict[tuple[str, ...], Stack] = {}
        for path in classes_in(module.tree.body):
            parts = self._parts(path)
            if all(name in parts for name in _BOTH):
                self._add(*(parts[name] for name in _BOTH))

    def are_in(self, path: tuple[str, ...], steps: int = 0) -> bool:
        """Whether a class, or a part of it, is an encoder or a decoder."""
        if not self.found or steps > _MOST_STEPS:
            return False
        return path in self.found or any(self.are_in(part, steps + 1) for part in self._parts(path).values())

    def called(self, path: tuple[str, ...]) -> frozenset[str]:
        """The attributes of a class that are encoders or decoders, or have them as parts."""
        if not self.found or path in self.found:
            return frozenset()
        return frozenset(name for name, part in self._parts(path).items() if self.are_in(part, 1))

    def _parts(self, path: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        init = init_of(ModelClass(self._module, path), self._finder)
        if init is None:
            return {}
        made = {part.attribute: class_called(init[0], part.call, self._finder) for part in parts_of(init[1])}
        return {
            name: model.path
            for name, model in made.items()
            if model is not None and model.module is self._module and model.path != path
        }

    def _loop(self, path: tuple[str, ...], method: str) -> tuple[str, str] | None:
        function = find_definitions(self._module.scope, (*path, method))[0].node
        variables = loops_in(function)
        for node in ast.walk(function):
            if not isinstance(node, ast.For):
                continue
            for call in ast.walk(node):
                if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in variables):
                    continue
                if call.args and isinstance(call.args[0], ast.Name):
                    return f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}:", call.args[0].id
        return None

    def _add(self, encoder: tuple[str, ...], decoder: tuple[str, ...]) -> None:
        found: dict[tuple[str, ...], Stack] = {}
        for path, name in ((encoder, "encoder"), (decoder, "decoder")):
            method = next((one for one in ENTRIES if find_definitions(self._module.scope, (*path, one))), None)
            if method is None:
                return
            found[path] = Stack(method, batch_of(self._module, (*path, method)), f'"{name}"', self._loop(path, method))
        if found[decoder].batch is None:
            return  # a codec of signals
        if encoder == decoder:
            init = init_of(ModelClass(self._module, encoder), self._finder)
            if init is None or "self.is_decoder" not in ast.unparse(init[1]):
                return
            both = found[encoder]
            found = {encoder: Stack(both.method, both.batch, '"decoder" if self.is_decoder else "encoder"')}
        self.found |= found

"""Which expression gives the number of a layer in its methods, whatever it is called there.

A class is numbered where a list of its objects is made with a counter (``[Block(config, n) for n in range(depth)]``),
and hands the number on to its parts. Else the usual names count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from patcher.model.parts import ModelClass, Part, class_called, classes_in, init_of, parts_of
from patcher.source.definitions import all_statements
from patcher.source.modules import ModuleFile, ModuleFinder

NAMES = ("layer_id", "layer_idx", "layer_index", "layer_number", "layer_num", "block_id", "block_idx", "block_index")
_MOST_STEPS = 8
"""From a layer to a part of a part of it."""


class LayerNumbers:
    """The layer numbers in the classes of one module."""

    def __init__(self, module: ModuleFile, finder: ModuleFinder) -> None:
        self._finder = finder
        self._parameters: dict[tuple[str, tuple[str, ...]], str] = {}
        """Per class the parameter of ``__init__`` that is the number."""
        for path in classes_in(module.tree.body):
            self._find_lists(ModelClass(module, path))

    def expression(self, model: ModelClass, steps: int = 0) -> str | None:
        """``self.layer_id``, ``self.attn.number`` or the like; None where the class does not know its number."""
        found = init_of(model, self._finder) if steps < _MOST_STEPS else None
        if found is None:
            return None
        owner, init = found
        parameter = self._parameters.get(model.key) or self._parameters.get(owner.key)
        attributes = dict(_assigned(init))
        for attribute, value in attributes.items():
            if parameter is not None and isinstance(value, ast.Name) and value.id == parameter:
                return f"self.{attribute}"
        usual = next((name for name in NAMES if name in attributes), None)
        if usual is not None:
            return f"self.{usual}"
        conditional: dict[str, str] = {}
        for part in parts_of(init):
            names = {parameter} if parameter is not None else set(NAMES)
            if part.in_list or not names & _given(part.call):
                continue
            inner = class_called(owner, part.call, self._finder)
            rest = None if inner is None or inner.key == model.key else self.expression(inner, steps + 1)
            if rest is None:
                continue
            text = of_object(rest, f"self.{part.attribute}")
            if not part.conditional:
                return text
            conditional.setdefault(part.attribute, text)
        # A layer of a hybrid has an attention or another mixer: whichever it has knows.
        chosen: str | None = None
        for attribute, text in reversed(conditional.items()):
            chosen = text if chosen is None else f'{text} if hasattr(self, "{attribute}") else {chosen}'
        return chosen

    def is_everywhere(self, model: ModelClass, steps: int = 0) -> bool:
        """Whether the class and all its parts that have parts themselves know the number of their layer."""
        if self.expression(model) is None:
            return False
        found = init_of(model, self._finder) if steps < _MOST_STEPS else None
        if found is None:
            return True
        inner = [class_called(found[0], part.call, self._finder) for part in parts_of(found[1])]
        return all(one is None or not self._has_parts(one) or self.is_everywhere(one, steps + 1) for one in inner)

    def _has_parts(self, model: ModelClass) -> bool:
        found = init_of(model, self._finder)
        return found is not None and bool(parts_of(found[1]))

    def _find_lists(self, model: ModelClass) -> None:
        found = init_of(model, self._finder)
        if found is None or found[0].key != model.key:
            return
        for part in parts_of(found[1]):
            if part.number is not None:
                self._number(model, part, part.number, 0)

    def _number(self, owner: ModelClass, part: Part, variable: str, steps: int) -> None:
        """Note that a part gets the number of its layer from a variable, and what it does with it."""
        model = class_called(owner, part.call, self._finder)
        found = init_of(model, self._finder) if model is not None and steps < _MOST_STEPS else None
        if model is None or found is None:
            return
        _, init = found
        parameter = _parameter_given(part.call, variable, init)
        if parameter is None or model.key in self._parameters:
            return
        self._parameters[model.key] = parameter
        for inner in parts_of(init):
            if not inner.in_list:
                self._number(found[0], inner, parameter, steps + 1)


def of_object(expression: str, name: str) -> str:
    """An expression of ``self`` as one of the object that is called ``name``."""
    return re.sub(r"\bself\b", name, expression)


def _parameter_given(call: ast.Call, variable: str, init: ast.FunctionDef) -> str | None:
    parameters = [parameter.arg for parameter in (*init.args.posonlyargs, *init.args.args)][1:]
    for position, value in enumerate(call.args):
        if isinstance(value, ast.Name) and value.id == variable and position < len(parameters):
            return parameters[position]
    for keyword in call.keywords:
        if isinstance(keyword.value, ast.Name) and keyword.value.id == variable:
            return keyword.arg
    return None


def _given(call: ast.Call) -> set[str]:
    """Names of keywords, and of variables that are handed on."""
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    names = {value.id for value in values if isinstance(value, ast.Name)}
    return names | {keyword.arg for keyword in call.keywords if keyword.arg is not None}


def _assigned(init: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for node in all_statements(init.body):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            targets: Sequence[ast.expr] = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        else:
            continue
        target = targets[0]
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            yield target.attr, node.value  # type: ignore[misc]

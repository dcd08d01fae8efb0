"""Writing a config for a class or a model file that nobody has written one for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from patcher.check import check_loaded
from patcher.config.load import load_config, parse_config
from patcher.errors import TargetError
from patcher.match.statements import FunctionIndex
from patcher.model.dims import DimsGuesses
from patcher.model.layer_numbers import LayerNumbers, of_object
from patcher.model.loops import LayerLoop, called_by_index, loops_in
from patcher.model.parts import (
    ENTRIES,
    ModelClass,
    Part,
    StepPlace,
    class_called,
    classes_in,
    correction_bias,
    engine_config,
    init_of,
    parts_of,
    whole_models,
)
from patcher.model.rows import of_other_tokens, of_whole_cache, unflattened
from patcher.model.stacks import Stack, Stacks
from patcher.plan.planner import make_plan
from patcher.source.definitions import Definition, find_class, find_definitions
from patcher.source.locate import locate
from patcher.source.modules import ModuleFile, ModuleFinder
from patcher.source.targets import find_method, resolve_target
from patcher.suggested_text import SuggestedEdit, config_text
from patcher.tappable import PlaceKind, TappablePlace, definition_index, function_index, self_methods, tappable_places

_HIDDEN = "hidden_states"
_ROUTERS, _EXPERTS = frozenset({"gate", "router"}), "experts"
_MIXTURE = frozenset(f"self.{name}" for name in (*_ROUTERS, _EXPERTS))
_DECAY = "self.A_log"
_ATTENTION_WEIGHTS = re.compile(r"(attn|attention)_?(weights|probs|scores)|position_bias")
"""What an attention gives beside its output: fused kernels have none, and its size is that of the context."""
_WITHOUT_ROWS = re.compile(
    r"relative_attention_bias|embed_positions|position_embeddings?\b|Positional(Embedding|Encoding)|Conv1d$|rope_init_fn"
)
"""Parts, or their classes, that look up what belongs to positions or to pairs of them, or have channels first and more
columns than the pass has tokens: no rows of tokens."""


def suggest_config(target: str, finder: ModuleFinder) -> str:
    """YAML of a config for a class, a module, a file or a function. Raises TargetError when there is none.

    There is a tap after each submodule call and each collective, and a step where a whole model is called; every edit
    of it lands.
    """
    suggestion = _Suggestion(target, finder)
    edits = _named(list(suggestion.edits()))
    if not any(edit.action == "dump" for edit in edits):
        raise TargetError(f"{target}: calls no submodule and no collective; see 'patcher list {target}'")
    engine = engine_config(suggestion.module)
    if engine is not None and make_plan([load_config(engine)], finder).errors:
        engine = None  # it is for another release
    return config_text(_landing(edits, finder), engine, suggestion.left_out)


def _landing(edits: Sequence[SuggestedEdit], finder: ModuleFinder) -> list[SuggestedEdit]:
    """The edits without those that do not land."""
    checked = check_loaded([parse_config(config_text(edits), "<suggestion>")], finder)
    failed = {
        (landing.target, landing.edit) for module in checked.modules for landing in module.landings if landing.error
    }
    if not failed:
        return list(edits)
    numbers: dict[str, int] = {}
    kept: list[SuggestedEdit] = []
    for edit in edits:
        resolved = resolve_target(edit.target, finder)[0].name
        numbers[resolved] = numbers.get(resolved, 0) + 1
        if (resolved, numbers[resolved]) not in failed:
            kept.append(edit)
    return kept


class _Suggestion:
    """Gathers the edits for one target."""

    def __init__(self, target: str, finder: ModuleFinder) -> None:
        self._target = target
        self._finder = finder
        self.module, self._path = locate(target, finder)
        self._numbers = LayerNumbers(self.module, finder)
        self._guesses = DimsGuesses(self.module, finder)
        self._stacks = Stacks(self.module, finder)
        self._stack: Stack | None = None
        """The encoder or decoder whose class is gone through."""
        self.left_out: list[str] = []
        """Calls that are not tapped, with the reason."""
        self._indexes: list[FunctionIndex] = []
        """Kept, so that the check need not parse the functions again."""

    def edits(self) -> Iterator[SuggestedEdit]:
        """All edits, function by function."""
        path = tuple(self._path)
        if path and find_class(self.module.scope, path) is None:
            yield from self._of_function()
            return
        classes = [path] if path else list(classes_in(self.module.tree.body))
        steps = {} if engine_config(self.module) else {place.model.path: place for place in self._whole_models()}
        entry = TappablePlace(0, "entry", "at", "entry")
        for found in classes:
            step, self._stack = steps.get(found), self._stacks.found.get(found)
            model = ModelClass(self.module, found)
            target = "" if step is None else f"{_name(step.model)}.{step.method}"
            if self._stack is not None:
                target = f"{_name(model)}.{self._stack.method}"
                yield SuggestedEdit(target, entry, "step", batch=self._stack.batch)
                if self._stack.batch is None and self._stack.loop is not None:
                    # What goes into the layers has a row for each place in the sound that the encoder is given.
                    header, rows = self._stack.loop
                    before = replace(entry, kind="call", form="match", pattern=header)
                    yield SuggestedEdit(target, before, "step", batch=f'{{"inputs_embeds": {rows}}}')
            elif step is not None and not self._stacks.are_in(found):
                yield SuggestedEdit(target, entry, "step", batch=step.batch)
            edits = sorted(self._of_class(model), key=lambda edit: edit.target != target)
            if self._stack is not None:
                edits = [replace(edit, stack=self._stack.which) for edit in edits]
            elif self._stacks.found:
                # From the loop: one class serves both, and may know its number in one of them alone.
                edits = [replace(edit, layer_id=None) for edit in edits]
            yield from edits
            if step is not None:
                yield SuggestedEdit(target, replace(entry, kind="return", pattern="return"), "end_step")

    def _whole_models(self) -> Sequence[StepPlace]:
        return whole_models(self.module, self._finder)

    def _of_function(self) -> Iterator[SuggestedEdit]:
        for resolved in resolve_target(self._target, self._finder):
            found = self._finder.find(resolved.module)
            assert found is not None
            for place in tappable_places(function_index(found, resolved.path)):
                if place.kind in ("submodule", "collective", "call") and place.values:
                    yield from _taps(resolved.name, place)

    def _of_class(self, model: ModelClass) -> Iterator[SuggestedEdit]:
        layer_id = self._numbers.expression(model)
        init = init_of(model, self._finder)
        owner = model if init is None else init[0]
        parts = {part.attribute: part for part in parts_of(init[1])} if init is not None else {}
        todo = [name for name in ENTRIES if find_definitions(self.module.scope, (*model.path, name))]
        done: set[str] = set()
        reached: dict[str, tuple[Definition, FunctionIndex, set[str]]] = {}
        while todo:
            method = todo.pop(0)
            found = None if method in done else find_method(model.module, model.path, method, self._finder)
            done.add(method)
            if found is None:
                continue
            definition = find_definitions(found[0].scope, found[1])[0]
            index = self._index(found[0], definition)
            called = self_methods(index)
            methods = {name for name in called if find_method(model.module, model.path, name, self._finder) is not None}
            todo += sorted(methods - done)
            reached[method] = definition, index, methods
        cached = of_whole_cache({method: definition.node for method, (definition, _, _) in reached.items()})
        for method, (definition, index, methods) in reached.items():
            spanning = cached.get(method, frozenset())
            self.left_out += [f"{callee} in {_name(model)}.{method}" for callee in sorted(spanning)]
            others = methods | {callee.removeprefix("self.") for callee in spanning} | self._stacks.called(model.path)
            yield from self._of_method(model, owner, method, index, definition, parts, others, layer_id)

    def _of_mixture(
        self, target: str, place: TappablePlace, layer_id: str | None, owner: ModelClass, part: Part | None
    ) -> Iterator[SuggestedEdit]:
        """Router and experts, under the names by which the comparator knows choices of experts."""
        if place.callee.removeprefix("self.") in _ROUTERS:
            # Some give the choices as well, the logits first.
            value = "$MATCH[0] if isinstance($MATCH, tuple) else $MATCH"
            wrapped = replace(place, form="wrap", pattern=f"{place.callee}(...)")
            yield SuggestedEdit(target, wrapped, "dump", "moe_router_logits", value, layer_id)
            bias = correction_bias(owner, part, self._finder)
            if bias is not None:
                # The same for each token, a row for each, so that it is told apart as the logits are.
                value = f"{bias}.reshape(1, -1).expand(({value}).reshape(-1, {bias}.numel()).shape[0], -1)"
                condition = f"{bias} is not None"
                yield SuggestedEdit(
                    target, wrapped, "dump", "moe_correction_bias", value, layer_id, condition=condition
                )
            return
        name, inputs = "moe_expert_output", ("moe_router_logits",)
        if place.form == "wrap":
            yield SuggestedEdit(target, place, "dump", name, None, layer_id, inputs=inputs, operation="moe")
        for value in place.values[:1] if place.form == "match" else ():
            yield SuggestedEdit(target, place, "dump", name, value, layer_id, inputs=inputs, operation="moe")

    def _of_method(
        self,
        model: ModelClass,
        owner: ModelClass,
        method: str,
        index: FunctionIndex,
        definition: Definition,
        parts: dict[str, Part],
        others: set[str],
        layer_id: str | None,
    ) -> Iterator[SuggestedEdit]:
        """``others``: what is called and is no tap."""
        target = f"{_name(model)}.{method}"
        loops = loops_in(definition.node)
        known = self._guesses.know_rows(model)
        recurs = _recurs(owner, self._finder)
        crossing = of_other_tokens(definition.node)

        def wanted(kind: PlaceKind, callee: str) -> bool:
            if callee in loops or called_by_index(callee) is not None:
                return True
            return kind == "collective" or (kind == "submodule" and callee.removeprefix("self.") not in others)

        for place in tappable_places(index, wanted):
            loop = loops.get(place.callee) or called_by_index(place.callee)
            if loop is not None:
                yield from self._of_loop(target, place, loop, owner, parts.get(loop.attribute))
            elif _ROUTERS & set(parts) and _EXPERTS in parts and place.callee in _MIXTURE:
                part = parts.get(place.callee.removeprefix("self."))
                yield from self._of_mixture(target, place, layer_id, owner, part)
            elif place.kind in ("submodule", "collective") and not _is_without_rows(place, parts):
                part = parts.get(place.callee.removeprefix("self."))
                guessed = known and part is not None and not part.in_list
                dims = self._guesses.of_part(owner, part, _first(place)) if guessed and part is not None else None
                inner = None if part is None or part.in_list else class_called(owner, part.call, self._finder)
                recurrent = recurs or (inner is not None and _recurs(inner, self._finder))
                shaped = _shaped(place, definition)
                for edit in _taps(target, shaped, layer_id, dims, self._guesses.hidden):
                    tap = replace(edit, condition=crossing.get(place.callee))
                    yield replace(tap, operation="recurrence") if recurrent else tap
            elif place.kind == "entry" and layer_id and method in ENTRIES and _HIDDEN in place.values:
                name = f"{_snake(model.path[-1])}_input"
                hidden = self._guesses.hidden if known else None
                yield SuggestedEdit(target, place, "dump", name, _HIDDEN, layer_id, hidden)

    def _of_loop(
        self, target: str, place: TappablePlace, loop: LayerLoop, owner: ModelClass, part: Part | None
    ) -> Iterator[SuggestedEdit]:
        """A call of the part that a loop has come to."""
        inner = None if part is None else class_called(owner, part.call, self._finder)
        own = None if inner is None else self._numbers.expression(inner)
        number = loop.number or (None if own is None else of_object(own, loop.variable))
        if number is None and part is not None and part.in_list:
            number = f"[*self.{loop.attribute}].index({loop.variable})"
        knows = inner is not None and self._numbers.is_everywhere(inner)
        if place.form == "match" and ((not knows and number is not None) or self._stack is not None):
            # What runs in there, or a part of it, does not know its layer.
            yield SuggestedEdit(target, place, "tags", layer_id=number)
        dims = None if part is None else self._guesses.of_part(owner, part, _first(place))
        named = replace(place, callee=_singular(loop.attribute))
        yield from _taps(target, named, number, dims, self._guesses.hidden)

    def _index(self, module: ModuleFile, definition: Definition) -> FunctionIndex:
        index = definition_index(module, definition)
        self._indexes.append(index)
        return index


def _is_without_rows(place: TappablePlace, parts: Mapping[str, Part]) -> bool:
    part = parts.get(place.callee.removeprefix("self."))
    return bool(_WITHOUT_ROWS.search(place.callee if part is None else f"{place.callee} {part.callee}"))


def _shaped(place: TappablePlace, definition: Definition) -> TappablePlace:
    """The place where the value of a call has a row for each token again, where the call has one for each head."""
    after = unflattened(definition.node, place.callee, _first(place)) if place.form == "match" else None
    return place if after is None else replace(place, pattern=after, count=1, nth=None)


def _recurs(model: ModelClass, finder: ModuleFinder) -> bool:
    """Whether a class is a state space or a linear attention: they have decays."""
    found = init_of(model, finder)
    return found is not None and _DECAY in ast.unparse(found[1])


def _taps(
    target: str,
    place: TappablePlace,
    layer_id: str | None = None,
    dims: str | None = None,
    hidden: str | None = None,
) -> Iterator[SuggestedEdit]:
    """A tap for each value of a place. ``dims`` are those of the first; a residual beside it is hidden states."""
    callee = place.callee
    callee = callee.removeprefix("self.") if callee.startswith("self.") else callee.rpartition(".")[2]
    name = re.sub(r"\W+", "_", callee).strip("_")
    if place.form == "wrap":
        yield SuggestedEdit(target, place, "dump", name, None, layer_id, dims)
    for number, value in enumerate(place.values if place.form == "match" else ()):
        if number > 0 and _ATTENTION_WEIGHTS.search(value):
            continue
        suffix = "" if number == 0 else f"_{re.sub(r'[^0-9a-zA-Z]+', '_', value)}"
        own = dims if number == 0 else hidden if dims is not None and value == "residual" else None
        yield SuggestedEdit(target, place, "dump", name + suffix, value, layer_id, own)


def _first(place: TappablePlace) -> str:
    return place.values[0] if place.values and place.form == "match" else ""


def _named(edits: Sequence[SuggestedEdit]) -> list[SuggestedEdit]:
    """Give taps of different functions different names; those of one function's branches share one."""
    owners: dict[str, set[str]] = {}
    for edit in edits:
        owners.setdefault(edit.name, set()).add(edit.target.rpartition(".")[0])
    return [
        replace(edit, name=f"{_snake(edit.target.split('.')[-2])}_{edit.name}")
        if edit.action == "dump" and len(owners[edit.name]) > 1
        else edit
        for edit in edits
    ]


def _name(model: ModelClass) -> str:
    return ".".join((model.module.name, *model.path))


def _snake(name: str) -> str:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", spaced).lower()


def _singular(name: str) -> str:
    return name[:-1] if len(name) > 3 and name.endswith("s") and not name.endswith("ss") else name

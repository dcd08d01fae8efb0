"""Which taps a tap is computed from, and how: the graph along which error is inherited.

Three sources, in this order: ``inputs:`` and ``operation:`` of the patch config, the names of the shipped configs, the
order of execution.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

from msgspec import Struct
from msgspec.structs import replace

from comparator.diagnosis.floors import EXACT, Operation, Quantisation, Sides
from comparator.diagnosis.tap_rows import TapKey


class TapDeclaration(Struct, frozen=True):
    """A tap as it was recorded; declarations are given in the order of execution."""

    key: TapKey
    inputs: tuple[str, ...] = ()
    """``NAME`` (same layer), ``NAME@-1`` (the layer before) or ``NAME@last`` (the last layer that has it)."""
    operation: str | None = None
    code: str | None = None
    """Where the tap is in the program, where that is known: layers of a hybrid have taps of one name in two places."""


class TapNode(Struct, frozen=True):
    key: TapKey
    operation: Operation
    inputs: tuple[TapKey, ...] = ()
    operands: tuple[TapKey, ...] = ()
    """Of a sum: the recorded operands. One of two: the other is taken to be the difference (``branch``)."""
    router: TapKey | None = None
    """Router logits of the layer, for what depends on the choice of experts."""
    branch: Operation | None = None
    """What computes the operand that was not recorded."""
    assumed: bool = False
    """Inputs come from the order of execution alone."""
    code: str | None = None
    """Where the tap is in the program."""
    quantisation: Quantisation = EXACT
    """What the model rounds values to on the way from the inputs."""
    unseen: int = 0
    """Whole layers between the inputs, or the embedding, and the tap's own layer, of which nothing was recorded."""
    routed_unseen: bool = False
    """Experts may be on the way whose choice was not recorded."""


class ModelStructure(Struct, frozen=True):
    """What is known of the model beside its taps."""

    layers: int | None = None
    mixture: bool = False
    """Tokens choose experts."""
    dtypes: Sides = (None, None)
    """That the baseline and the target compute in, where that is known."""
    quantisation: Quantisation = EXACT


class TapGraph(Struct, frozen=True, dict=True):
    nodes: tuple[TapNode, ...]
    """In the order of execution."""
    notes: tuple[str, ...] = ()
    """What was assumed."""
    model: ModelStructure = ModelStructure()

    @cached_property
    def _by_key(self) -> Mapping[TapKey, TapNode]:
        return {node.key: node for node in reversed(self.nodes)}

    @cached_property
    def asked_for(self) -> frozenset[TapKey]:
        """The taps that others are measured against."""
        routers = (node.router for node in self.nodes if node.router is not None)
        return frozenset((*(key for node in self.nodes for key in node.operands), *routers))

    def node(self, key: TapKey) -> TapNode | None:
        return self._by_key.get(key)


class GraphError(Struct, frozen=True):
    """The declared inputs make no graph."""

    message: str


_DECLARED: Mapping[str, Operation] = {
    name: name for name in ("attention", "recurrence", "linear", "sum", "norm", "mlp", "moe", "router", "logits")
}
LOGITS = "next_token_logits"
EXPERT_TAPS = _EXPERTS, _ROUTER = "moe_expert_output", "moe_router_logits"
_STREAM = "layer_input"
_BEHIND_ALL = frozenset({"final_norm_output", LOGITS})
_OF_STREAM = frozenset({_STREAM, *_BEHIND_ALL})
"""The residual stream, and what is one map behind it."""
_BEFORE_EXPERTS = frozenset({_STREAM, "attn_pre_o_proj", "attn_output", "pre_mlp_residual", _ROUTER})
BEHIND_EXPERTS = frozenset({_EXPERTS, "mlp_output"})
USUAL_LAYERS = 32
"""Of a model of which nothing tells how many it has, before a tap that is of none."""
_WEIGHTS = frozenset({"moe_correction_bias"})
PARAMETERS = ("param.", "param__")
"""What the names of weights that ``dumper.dump_model`` records begin with. Nothing is computed there, so that nothing
is inherited, there and from there."""
_CONVENTIONS: Mapping[str, tuple[tuple[Operation, tuple[str, ...]], ...]] = {
    _STREAM: (("sum", ("pre_mlp_residual@-1", "mlp_output@-1")),),
    "attn_pre_o_proj": (("attention", ("layer_input",)),),
    "attn_output": (("linear", ("attn_pre_o_proj",)), ("attention", ("layer_input",))),
    "pre_mlp_residual": (("sum", ("layer_input", "attn_output")),),
    _ROUTER: (("router", ("pre_mlp_residual",)),),
    _EXPERTS: (("moe", ("pre_mlp_residual",)),),
    "mlp_output": (("combine", (_EXPERTS,)), ("mlp", ("pre_mlp_residual",))),
    "final_norm_output": (("norm", ("pre_mlp_residual@last", "mlp_output@last")),),
    LOGITS: (("logits", ("final_norm_output",)),),
}
"""Per name what it is, by the first alternative of which an input was recorded."""
_BRANCH: Mapping[str, Operation] = {_STREAM: "mlp", "pre_mlp_residual": "attention", "final_norm_output": "mlp"}


def build_graph(declared: Sequence[TapDeclaration], model: ModelStructure | None = None) -> TapGraph | GraphError:
    """The graph of the recorded taps; a GraphError when an input is unreadable or a tap depends on itself."""
    keys = {declaration.key for declaration in declared}
    nodes: list[TapNode] = []
    notes: list[str] = []
    experts: dict[int | None, TapKey] = {}
    previous: TapKey | None = None
    for declaration in declared:
        for text in declaration.inputs:
            name, _, where = text.partition("@")
            if not name or ("@" in text and where != "last" and _offset(where) is None):
                message = f"{declaration.key.name}: {text!r} is no input; expected NAME, NAME@-1 or NAME@last"
                return GraphError(message)
        node = _resolve(declaration, keys, previous, experts.get(declaration.key.layer))
        if declaration.key.name == _EXPERTS:
            experts[declaration.key.layer] = declaration.key
        if node.assumed and node.inputs:
            notes.append(f"{node.key.label}: its input is taken to be {node.inputs[0].label}, the tap before it")
        nodes.append(node if declaration.code is None else replace(node, code=declaration.code))
        previous = previous if _is_weight(declaration.key) else declaration.key
    cycle = _find_cycle(nodes)
    if cycle:
        return GraphError(
            "inputs go in a circle: " + " <- ".join(key.label for key in cycle) + "; a tap cannot depend on itself"
        )
    model = model or ModelStructure()
    nodes = _of_model(nodes, model)
    return TapGraph(tuple(nodes), (*notes, *_unseen_notes(nodes)), model)


def _of_model(nodes: Sequence[TapNode], model: ModelStructure) -> list[TapNode]:
    """The nodes with what the model does on the way to each, seen or not."""
    places = _places(nodes, model)
    mixture = model.mixture or any(node.key.name in EXPERT_TAPS for node in nodes)
    routers = {node.key.layer for node in nodes if node.key.name == _ROUTER}
    found = []
    for node in nodes:
        unseen = _unseen(node, places)
        routed = mixture and (unseen > 0 or _may_have_experts(node, places, routers))
        operation: Operation = "unseen" if unseen and node.operation == "source" else node.operation
        found.append(
            replace(node, operation=operation, quantisation=model.quantisation, unseen=unseen, routed_unseen=routed)
        )
    return found


def _unseen(node: TapNode, places: Mapping[TapKey, int]) -> int:
    """An unknown operation may be the rest of a layer; what is known to be less has that before it."""
    if node.operation == "embedding" or _is_weight(node.key):
        return 0
    if not node.inputs:
        return places[node.key]
    layers = places[node.key] - max(places.get(key, places[node.key]) for key in node.inputs)
    return max(0, layers - (node.operation == "unknown" or not node.assumed))


def _may_have_experts(node: TapNode, places: Mapping[TapKey, int], routers: Collection[int | None]) -> bool:
    """Whether experts may be between a tap whose inputs are guessed and these, or in what it computes."""
    if not (node.assumed or node.operation in ("unknown", "source")) or _is_weight(node.key):
        return False
    last = node.inputs[0] if node.inputs else None
    if last is not None and places.get(last, 0) < places[node.key] and last.name not in BEHIND_EXPERTS:
        return last.layer not in routers or last.name in _BEFORE_EXPERTS
    return node.key.layer not in routers and node.key.layer is not None


def _places(nodes: Sequence[TapNode], model: ModelStructure) -> dict[TapKey, int]:
    """Per tap how many layers come before its own; what has none is before the first one that was recorded or behind
    all. Gradients have all of them before theirs."""
    layered = [at for at, node in enumerate(nodes) if node.key.layer is not None]
    every = max(model.layers or 0, *(1 + (nodes[at].key.layer or 0) for at in layered), 0)
    found = {}
    for at, node in enumerate(nodes):
        behind = every or (USUAL_LAYERS if node.key.name in _BEHIND_ALL else 0)
        outside = 0 if layered and at < layered[0] else behind
        is_outside = node.key.layer is None or node.key.is_gradient
        found[node.key] = outside if is_outside else node.key.layer or 0
    return found


def _unseen_notes(nodes: Sequence[TapNode]) -> list[str]:
    """The first tap behind layers that were not seen."""
    node = next((node for node in nodes if node.unseen), None)
    if node is None:
        return []
    layers = "a layer" if node.unseen == 1 else f"{node.unseen} layers"
    since = f"between {node.inputs[0].label} and it" if node.inputs else "before it"
    return [
        f"{node.key.label}: nothing was compared of {layers} {since}; its error is held against what rounding makes of "
        "that much, and a fault there may hide in it"
    ]


def _offset(where: str) -> int | None:
    return int(where) if where[:1] == "-" and where[1:].isdigit() else None


def _resolve(
    declaration: TapDeclaration, keys: set[TapKey], previous: TapKey | None, experts: TapKey | None
) -> TapNode:
    """``experts``: of the same layer, where they come before."""
    key = declaration.key
    operation = _DECLARED.get(declaration.operation or "")
    router = _of_name(_ROUTER, key, keys)
    if declaration.inputs:
        found = _recorded(declaration.inputs, key, keys)
        if found:
            return _node(key, operation or _conventional_operation(key, found), declaration.inputs, found, router, keys)
        if all("@-" in text for text in declaration.inputs) and key.layer is not None:
            earlier = [other for other in keys if other.name == key.name and (other.layer or 0) < key.layer]
            if not earlier:
                return _source(key)
    for conventional, inputs in _CONVENTIONS.get(key.name, ()):
        found = _recorded(inputs, key, keys)
        if found:
            return _node(key, operation or conventional, inputs, found, router, keys)
    if previous is None or _is_weight(key) or (key.name == _STREAM and _is_first(key, keys)):
        return _source(key)
    # Behind the experts of its layer a tap may have them in it, whatever was recorded between.
    sources = tuple(dict.fromkeys((previous, *(() if experts is None else (experts,)))))
    # What was declared is of the declared inputs, but for taps by which tokens and experts are chosen.
    known = operation not in (None, "sum") and (not declaration.inputs or operation in ("logits", "router"))
    return TapNode(key, operation if operation is not None and known else "unknown", sources, assumed=True)


def _source(key: TapKey) -> TapNode:
    """A tap that nothing recorded comes before. What goes into layer 0 is the embedding of the tokens; what is no part
    of the stream was computed from it in ways that nobody knows."""
    if key.name == _STREAM and key.layer == 0:
        return TapNode(key, "embedding")
    plain = key.layer is None or key.name in _OF_STREAM or _is_weight(key)
    return TapNode(key, "source" if plain else "unknown")


def _is_weight(key: TapKey) -> bool:
    return key.name in _WEIGHTS or key.name.startswith(PARAMETERS)


def _is_first(key: TapKey, keys: set[TapKey]) -> bool:
    return not any(other.layer is not None and key.layer is not None and other.layer < key.layer for other in keys)


def _conventional_operation(key: TapKey, found: tuple[TapKey, ...]) -> Operation:
    names = {one.name for one in found}
    for operation, inputs in _CONVENTIONS.get(key.name, ()):
        if names & {text.partition("@")[0] for text in inputs}:
            return operation
    return "unknown"


def _node(
    key: TapKey,
    operation: Operation,
    inputs: tuple[str, ...],
    found: tuple[TapKey, ...],
    router: TapKey | None,
    keys: set[TapKey],
) -> TapNode:
    routed = router if operation in ("moe", "combine") or (operation == "mlp" and router is not None) else None
    if operation == "mlp" and routed is not None:
        operation = "moe"
    if operation in ("moe", "combine", "sum") and key.name != _EXPERTS and [one.name for one in found] == [_EXPERTS]:
        operation = "combine"
    if operation not in ("sum", "norm") or len(inputs) < 2:
        return TapNode(key, operation, found, router=routed)
    if len(found) == len(inputs):
        return TapNode(key, operation, found, operands=found)
    branch: Operation = _BRANCH.get(key.name, "unknown")
    source = found[0]
    router = _of_name(_ROUTER, source, keys)
    if branch == "mlp" and router is not None:
        branch = "moe"
    routed = router if branch == "moe" else None
    if operation == "norm":
        return TapNode(key, branch, found, router=routed)
    return TapNode(key, operation, found, operands=found, router=routed, branch=branch)


def _recorded(inputs: tuple[str, ...], key: TapKey, keys: set[TapKey]) -> tuple[TapKey, ...]:
    found = (_find(text, key, keys) for text in inputs)
    return tuple(one for one in found if one is not None)


def _find(text: str, key: TapKey, keys: set[TapKey]) -> TapKey | None:
    name, _, where = text.partition("@")
    if where == "last":
        layers = [one for one in keys if one.name == name and one.tags == key.tags]
        return max(layers, key=lambda one: -1 if one.layer is None else one.layer, default=None)
    offset = _offset(where) or 0
    if offset and key.layer is None:
        return None
    wanted = TapKey(name, None if key.layer is None else key.layer + offset, key.tags)
    if wanted in keys:
        return wanted
    return None if offset else _of_name(name, key, keys)


def _of_name(name: str, key: TapKey, keys: set[TapKey]) -> TapKey | None:
    """The tap of the layer and tags of ``key``, or of its layer alone where there is one."""
    wanted = TapKey(name, key.layer, key.tags)
    if wanted in keys:
        return wanted
    others = [one for one in keys if one.name == name and one.layer == key.layer]
    return others[0] if len(others) == 1 else None


def _find_cycle(nodes: Sequence[TapNode]) -> tuple[TapKey, ...]:
    try:
        TopologicalSorter({node.key: node.inputs for node in nodes}).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()

"""The taps of a pair of runs as the analysis knows them: their names, what they are computed from, their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field
from msgspec.structs import replace

from comparator.align.load import load_array
from comparator.diagnosis import GraphError, Parting, TapDeclaration, TapGraph, TapKey, build_graph
from comparator.diagnosis.precision import precision_of
from comparator.diagnosis.tap_graph import EXPERT_TAPS
from comparator.errors import PairError
from comparator.match.bundles import BundlePair, Key
from comparator.match.indexing import parallel_layout
from comparator.options import Options, Side
from comparator.plan.tokens.interface import PartedSequence
from comparator.verdict.model_facts import ModelFacts, model_facts
from comparator.verdict.training import is_gradient, is_parameter, last_step_of_equal_weights
from dumper.reading.protocol import Run, TapCoverage

_HALVES = ("bfloat16", "float16")
_GRADIENTS = 4
"""Gradients of parameters that are looked at."""
_OF_EXPERTS = ("moe", "router")
LAYER_TAGS = ("layer_id", "layer", "layer_idx", "layer_number")
"""Tags that count layers; the first one that a tap has and that is a whole number is its layer."""


class Taps(Struct, frozen=True):
    """All taps that both runs recorded, in the order of execution."""

    keys: Mapping[Key, TapKey]
    """By family."""
    families: Mapping[TapKey, Key]
    graph: TapGraph
    ranks: int = 1
    """The most ranks that either run has."""
    sizes: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
    """Axis to its size, of the baseline and of the target."""
    facts: ModelFacts = field(default_factory=ModelFacts)
    """What the headers say of the model."""
    other_engine: bool = False
    """The runs are of different engines."""
    problem: str | None = None
    """Why the declared inputs are not used."""
    coarsest: tuple[str, str] = ("float32", "float32")
    """The least exact floating-point type that each side recorded, of those that models are trained in. Of runs without
    gradients whose weights nobody updated it is not looked for."""
    of_gradients: bool = False
    """Gradients alone tell these: all that was recorded is float32."""
    trained: int | None = None
    """The step whose gradients may have changed the weights of what was computed behind it; None where nothing was."""
    encoded: Mapping[int, npt.NDArray[np.bool_]] = {}
    """Per sequence with images or sound the positions whose rows come out of an encoder."""
    partings: tuple[Parting, ...] = ()
    """Where sampled tokens of a sequence part; what follows is another text and is not measured."""


def collect_taps(
    pairs: Sequence[BundlePair],
    baseline: Run,
    target: Run,
    parted: Sequence[PartedSequence] = (),
    options: Options | None = None,
) -> Taps:
    """The taps of the pairs that both sides have. Inputs come from the target's taps, else from the baseline's.

    Where declared inputs make no graph they are left aside, and ``problem`` says why.
    """
    covered = {tap.id: tap for run in (baseline, target) for tap in run.taps}
    declared: dict[Key, TapDeclaration] = {}
    for pair in pairs:
        if pair.baseline is not None and pair.target is not None and pair.family not in declared:
            declared[pair.family] = _declare(pair, covered)
    keys = {family: declaration.key for family, declaration in declared.items()}
    facts, other_engine = model_facts(baseline, target, options), _engine(baseline) != _engine(target)
    structure = facts.structure
    if any(tap.fired and (tap.operation in _OF_EXPERTS or tap.name in EXPERT_TAPS) for tap in covered.values()):
        structure = replace(structure, mixture=True)
    graph = build_graph(list(declared.values()), structure)
    problem = None
    if isinstance(graph, GraphError):
        problem = graph.message
        graph = build_graph([replace(declaration, inputs=()) for declaration in declared.values()], structure)
    if isinstance(graph, GraphError):  # not without declared inputs: names and the order of execution have no circles
        raise AssertionError(graph.message)
    ranks = max(len(baseline.ranks), len(target.ranks), 1)
    partings = tuple(Parting(one.sequence, one.position, one.baseline, one.target) for one in parted)
    families = {key: family for family, key in keys.items()}
    sizes = (_sizes(baseline), _sizes(target))
    trained = last_step_of_equal_weights(pairs, (baseline, target))
    found = Taps(keys, families, graph, ranks, sizes, facts, other_engine, problem, trained=trained, partings=partings)
    if trained is None and not any(map(is_gradient, keys)):
        return found
    coarsest, of_gradients = _coarsest(pairs)
    return replace(found, coarsest=coarsest, of_gradients=of_gradients)


def _coarsest(pairs: Sequence[BundlePair]) -> tuple[tuple[str, str], bool]:
    """A gradient that was computed in bfloat16, as of a loss under autocast, is handed on as float32. Where nothing but
    parameters was recorded, gradients of theirs tell, those that no rank or micro-batch added to."""
    found = [
        {like.record.dtype for pair in pairs if (bundle := getattr(pair, side)) is not None for like in bundle.likes}
        for side in ("baseline", "target")
    ]
    first, second = (next((half for half in _HALVES if half in one), "float32") for one in found)
    if first != "float32" or second != "float32":
        return (first, second), False
    of_weights = [one for one in pairs if is_gradient(one.family) and is_parameter(one.family[:1])]
    return (_of_gradients(of_weights, "baseline"), _of_gradients(of_weights, "target")), True


def _of_gradients(pairs: Sequence[BundlePair], side: Side) -> str:
    """The least exact type whose values all elements of one of the first gradients are."""
    bundles = [bundle for pair in pairs if (bundle := getattr(pair, side)) is not None and bundle.all_tensors]
    for bundle in [one for one in bundles if len(one.like.record.shape or ()) > 1][:_GRADIENTS]:
        try:
            found = precision_of(load_array(bundle.entries[0]))
        except (PairError, ValueError):
            continue  # its own measurement says why
        if found in _HALVES:
            return found
    return "float32"


def _engine(run: Run) -> str:
    """The framework that knew the ranks; torch's process groups belong to programs of any kind."""
    names = {header.framework for header in run.headers.values()} - {None, "torch.distributed"}
    return " ".join(sorted(name for name in names if name))


def _sizes(run: Run) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for axes in parallel_layout(run).values():
        for axis, (_, size) in axes.items():
            sizes[axis] = max(size, sizes.get(axis, 1))
    return sizes


def _declare(pair: BundlePair, covered: Mapping[str, TapCoverage]) -> TapDeclaration:
    key = tap_key(pair.family)
    tap = covered.get(pair.tap or "")
    if tap is None or any(tag == "stream" for tag, _ in key.tags):
        return TapDeclaration(key)
    return TapDeclaration(key, tap.inputs, tap.operation, tap.id)


def tap_key(family: Key) -> TapKey:
    """The name of a family in the analysis. Gradients flow the other way: no convention holds for their names."""
    name = str(family[0][1])
    tags = {tag: str(value) for tag, value in family[1:]}
    layer_tag = next((tag for tag in LAYER_TAGS if tags.get(tag, "").isdecimal()), None)
    layer = None if layer_tag is None else int(tags.pop(layer_tag))
    if is_gradient(family):
        name = f"gradient of {name}"
    return TapKey(name, layer, tuple(sorted(tags.items())))

"""Recordings of a part of the taps: what comes before them was not seen, and rounding there is no fault."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

from comparator.diagnosis import Diagnosis, TapDeclaration, TapKey, TapNode, build_graph, label_rows
from comparator.diagnosis.tap_graph import GraphError, ModelStructure, TapGraph
from comparator.diagnosis.words import describe
from tests.comparator.diagnosis.simulator import DENSE, LAYERS, Kernels, Model, Recording, at, compare

EAGER = Kernels(pieces=2, eager=True, fused_norm=True)
PARTS: dict[str, Callable[[TapKey], bool]] = {
    "the last layer": lambda key: key.layer == LAYERS - 1,
    "the last layer and the logits": lambda key: key.layer in (LAYERS - 1, None),
    "logits alone": lambda key: key.name == "next_token_logits",
    "the norm before them": lambda key: key.name == "final_norm_output",
    "one MLP": lambda key: key == TapKey("mlp_output", 1),
    "an attention in each layer": lambda key: key.name == "attn_output",
    "MLPs": lambda key: key.name == "mlp_output",
    "residuals": lambda key: key.name == "pre_mlp_residual",
    "the stream and the logits": lambda key: key.name in ("layer_input", "next_token_logits"),
    "the first and the last layer": lambda key: key.layer in (0, LAYERS - 1),
    "routers": lambda key: key.name == "moe_router_logits",
    "experts and attentions": lambda key: key.name in ("moe_expert_output", "attn_output"),
}


def part(run: Recording, chosen: Callable[[TapKey], bool]) -> Recording:
    return Recording({key: value for key, value in run.values.items() if chosen(key)}, run.labels, run.dtype)


def compared(first: Recording, second: Recording, name: str, *, experts: bool = False) -> Diagnosis:
    """``experts``: of which the headers of runs, or their other taps, tell."""
    return compare(part(first, PARTS[name]), part(second, PARTS[name]), model=ModelStructure(mixture=experts))


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_clean_runs_agree_whatever_was_recorded(name: str, experts: bool) -> None:
    if not experts and name in ("routers", "experts and attentions"):
        name = "residuals"
    for seed in range(3):
        model = Model(seed, experts=experts)
        found = compared(model.run(), model.run(EAGER), name, experts=experts)
        assert found.verdict == "agree", (found.place, found.nearest)
        assert found.nearest < 1


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("name", ["logits alone", "the norm before them", "one MLP", "the last layer", "MLPs"])
def test_what_has_nothing_to_do_with_the_other_side_is_a_fault(name: str, experts: bool) -> None:
    """Of one row, of few rows, and of all."""
    model = Model(0, experts=experts)
    clean, other = model.run(), model.run(EAGER)
    of_experts = experts and name in ("one MLP", "MLPs")
    for rows in (slice(None), [5], slice(0, 3)):
        values = {key: value.copy() for key, value in other.values.items()}
        for key, value in values.items():
            if PARTS[name](key) and key.layer != 0:
                value[rows] = np.roll(value, 7, axis=1)[rows]
        found = compared(clean, Recording(values, other.labels, other.dtype), name, experts=experts)
        # What experts give may be something else in single rows, and nothing recorded tells.
        if not of_experts or rows == slice(None):
            assert found.verdict == "differ", (name, rows, found.nearest)


@pytest.mark.parametrize("tap", ["attn_output", "mlp_output"])
def test_a_factor_is_found_in_the_only_layer_that_was_recorded(tap: str) -> None:
    def scaled(value: np.ndarray) -> np.ndarray:
        return value * np.float32(1.02)

    found = compared(DENSE.run(), DENSE.run(EAGER, at(tap, LAYERS - 1, scaled)), "the last layer")
    assert found.place == TapKey(tap, LAYERS - 1)


def test_it_is_said_what_was_not_seen() -> None:
    found = compared(DENSE.run(), DENSE.run(EAGER), "the last layer")
    assert any(
        note.startswith("layer_input layer 2: nothing was compared of 2 layers before it") for note in found.notes
    )
    assert "a fault there may hide in it" in describe(found)


def graph(*names: str, model: ModelStructure | None = None) -> TapGraph:
    keys = []
    for text in names:
        name, _, layer = text.partition(" ")
        keys.append(TapDeclaration(TapKey(name, int(layer) if layer else None)))
    found = build_graph(keys, model)
    assert not isinstance(found, GraphError)
    return found


def unseen(*names: str, model: ModelStructure | None = None) -> list[int]:
    return [node.unseen for node in graph(*names, model=model).nodes]


def test_layers_between_taps_are_counted() -> None:
    assert unseen("layer_input 0", "attn_output 0", "attn_output 5") == [0, 0, 4]
    assert unseen("layer_input 3", "next_token_logits") == [3, 0], "the rest of layer 3"
    assert unseen("layer_input 3", "next_token_logits", model=ModelStructure(layers=24)) == [3, 20]
    assert unseen("next_token_logits", model=ModelStructure(layers=24)) == [24]
    assert unseen("next_token_logits") == [32], "as many as is usual"
    assert unseen("kernel_output") == [0]
    assert unseen("param.layers.5.weight 5", "param.layers.9.weight 9") == [0, 0]
    assert unseen("embeddings", "layer_input 0", "attn_output 0") == [0, 0, 0]
    assert unseen("mlp_output 0", "layer_input 1", "layer_input 2") == [0, 0, 0]


def test_an_operation_was_declared_of_inputs_that_were_recorded() -> None:
    declared = TapDeclaration(TapKey("attn_output", 1), inputs=("attn_pre_o_proj",), operation="linear")
    found = build_graph([replace(declared, key=TapKey("attn_output", 0)), declared])
    assert not isinstance(found, GraphError)
    assert [node.operation for node in found.nodes] == ["unknown", "unknown"]
    assert isinstance(found.nodes[1], TapNode)
    assert found.nodes[1].inputs == (TapKey("attn_output", 0),)


def test_experts_may_hide_where_their_router_was_not_recorded() -> None:
    mixture = ModelStructure(mixture=True)
    assert [node.routed_unseen for node in graph("mlp_output 0", "mlp_output 1", model=mixture).nodes] == [True, True]
    names = ("layer_input 0", "moe_router_logits 0", "moe_router_logits 1")
    assert [node.routed_unseen for node in graph(*names).nodes] == [False, False, True]
    assert not any(node.routed_unseen for node in graph("mlp_output 0", "mlp_output 1").nodes)


def test_weights_alone_are_judged_strictly() -> None:
    """A weight of layer 5 that is one step of training old: off by a hundredth, in bfloat16."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, 128)).astype(ml_dtypes.bfloat16)
    stale = (weight + 0.01 * generator.standard_normal(weight.shape)).astype(ml_dtypes.bfloat16)
    key = TapKey("param.layers.weight", 5)
    runs = [
        Recording({key: one.astype(np.float32)}, label_rows(64, None, None, None), "bfloat16")
        for one in (weight, stale)
    ]
    assert compare(*runs).place == key

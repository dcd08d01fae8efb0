from __future__ import annotations

from comparator.diagnosis import GraphError, TapDeclaration, TapGraph, TapKey, build_graph

LAYER = ("layer_input", "attn_pre_o_proj", "attn_output", "pre_mlp_residual")


def graph_of(names, layers=2, after=("final_norm_output", "next_token_logits"), **declared):
    keys = [TapKey(name, layer) for layer in range(layers) for name in names] + [TapKey(name) for name in after]
    found = build_graph([TapDeclaration(key, *declared.get(key.name, ())) for key in keys])
    assert isinstance(found, TapGraph), found
    return found


def test_conventional_names_of_a_dense_model():
    graph = graph_of((*LAYER, "mlp_output"))
    first, second = graph.node(TapKey("layer_input", 0)), graph.node(TapKey("layer_input", 1))
    assert first.operation == "embedding"
    assert first.inputs == ()
    assert second.operation == "sum"
    assert second.operands == (TapKey("pre_mlp_residual", 0), TapKey("mlp_output", 0))
    assert graph.node(TapKey("mlp_output", 1)).operation == "mlp"
    assert graph.node(TapKey("final_norm_output")).operands == (
        TapKey("pre_mlp_residual", 1),
        TapKey("mlp_output", 1),
    )
    assert graph.node(TapKey("next_token_logits")).inputs == (TapKey("final_norm_output"),)
    assert graph.notes == ()


def test_the_first_layer_that_was_recorded_need_not_be_behind_the_embedding():
    keys = [TapKey(name, layer) for layer in (3, 4) for name in (*LAYER, "mlp_output")]
    assert build_graph([TapDeclaration(key) for key in keys]).node(TapKey("layer_input", 3)).operation == "unseen"


def test_a_weight_inherits_nothing_from_the_tap_before_it():
    node = graph_of((*LAYER, "moe_router_logits", "moe_correction_bias")).node(TapKey("moe_correction_bias", 1))
    assert (node.operation, node.inputs) == ("source", ())


def test_nothing_inherits_from_a_weight_by_the_order_of_execution():
    keys = [TapKey(name, 1) for name in ("norm", "moe_correction_bias", "moe_router_logits", "after")]
    graph = build_graph([TapDeclaration(key) for key in keys])
    assert graph.node(keys[2]).inputs == (keys[0],)
    assert graph.node(keys[3]).inputs == (keys[2],)


def test_experts_hang_on_their_router():
    graph = graph_of((*LAYER, "moe_router_logits", "moe_expert_output", "mlp_output"))
    node = graph.node(TapKey("moe_expert_output", 1))
    assert (node.operation, node.router) == ("moe", TapKey("moe_router_logits", 1))
    node = graph.node(TapKey("mlp_output", 1))
    assert (node.operation, node.inputs) == ("combine", (TapKey("moe_expert_output", 1),))


def test_a_branch_that_was_not_recorded_is_the_difference_of_residuals():
    node = graph_of(LAYER).node(TapKey("layer_input", 1))
    assert (node.operation, node.branch, node.operands) == ("sum", "mlp", (TapKey("pre_mlp_residual", 0),))


def test_declared_inputs_come_before_names():
    declared = {
        "mine": (("layer_input",), "mlp"),
        "layer_input": (("mine@-1",), "linear"),
        "head": (("mine@last",), "logits"),
    }
    graph = graph_of(("layer_input", "mine"), layers=3, after=("head",), **declared)
    assert graph.node(TapKey("layer_input", 0)).operation == "embedding"
    assert graph.node(TapKey("layer_input", 2)).inputs == (TapKey("mine", 1),)
    assert graph.node(TapKey("mine", 2)).operation == "mlp"
    assert graph.node(TapKey("head")).inputs == (TapKey("mine", 2),)


def test_unknown_names_get_the_tap_before_them():
    graph = graph_of(("first", "second"), after=())
    node = graph.node(TapKey("first", 1))
    assert (node.operation, node.inputs, node.assumed) == ("unknown", (TapKey("second", 0),), True)
    assert "taken to be second layer 0" in graph.notes[1]


def test_a_circle_is_an_error_that_names_it():
    declared = [TapDeclaration(TapKey("a", 0), ("b",)), TapDeclaration(TapKey("b", 0), ("a",))]
    found = build_graph(declared)
    assert isinstance(found, GraphError)
    assert "a layer 0" in found.message
    assert "circle" in found.message


def test_an_input_that_cannot_be_read_is_an_error():
    found = build_graph([TapDeclaration(TapKey("a", 0), ("b@+1",))])
    assert isinstance(found, GraphError)
    assert "NAME@-1" in found.message


def test_many_layers_with_two_operands_each_are_no_exponential_search():
    graph_of((*LAYER, "mlp_output"), layers=100)


def test_behind_its_experts_a_tap_of_another_name_may_have_them_in_it():
    """Whatever was recorded between: rows with another choice of experts are not the work of the tap."""
    graph = graph_of(("before", "moe_router_logits", "moe_expert_output", "between", "block"))
    node = graph.node(TapKey("block", 1))
    assert (node.operation, node.inputs) == ("unknown", (TapKey("between", 1), TapKey("moe_expert_output", 1)))
    assert graph.node(TapKey("before", 1)).inputs == (TapKey("block", 0),), "not those of another layer"

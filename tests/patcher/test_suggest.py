"""What ``suggest`` finds in the source of a model: loops over layers, their numbers, steps, dims."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from patcher.check import check_loaded
from patcher.config.load import parse_config
from patcher.model.dims import rows_of
from patcher.model.loops import LayerLoop, called_by_index, loops_in
from patcher.source.modules import ModuleFinder
from patcher.suggest import suggest_config
from tests.patcher.support import block, run_module

NET = block("""
    def build(nn, width):
        class Mlp(nn.Module):
            def __init__(self):
                self.up = nn.Linear(width, 4 * width)
                self.down = nn.RowParallelLinear(4 * width, width, reduce_results=False)

            def forward(self, x):
                out, _ = self.down(self.up(x))
                return out

        class Attention(nn.Module):
            def __init__(self, which):
                self.place = which
                self.qkv_proj = nn.QKVParallelLinear(width)

            def forward(self, x):
                batch, length, _ = x.shape
                x = self.qkv_proj(x)
                return x

        class Block(nn.Module):
            def __init__(self, width, depth):
                self.norm = nn.LayerNorm(width)
                self.attention = Attention(depth)
                self.mlp = Mlp()

            def forward(self, x):
                h = self.norm(x)
                h = self.attention(h)
                h = self.mlp(h)
                return h

        class Net(nn.Module):
            def __init__(self, width, depth):
                self.embed = nn.Embedding(10, width)
                self.blocks = nn.ModuleList([Block(width, d) for d in range(depth)])
                self.mlps = nn.ModuleList()
                for k in range(depth):
                    self.mlps.append(Mlp())

            def forward(self, input_ids):
                x = self.embed(input_ids)
                for block in self.blocks:
                    x = block(x)
                for n, mlp in enumerate(self.mlps[1:]):
                    x = mlp(x)
                return x

        return Net
""")


def suggested(folder: Path, source: str, target: str = "net") -> dict[str, list[dict[str, Any]]]:
    """Edits by function; all of them land."""
    (folder / "net.py").write_text(source)
    finder = ModuleFinder([folder])
    text = suggest_config(target, finder)
    assert check_loaded([parse_config(text)], finder).ok
    return {patch["target"].partition(".")[2]: patch["edits"] for patch in yaml.safe_load(text)["patches"]}


def test_classes_in_functions_layers_in_lists_and_their_numbers(tmp_path: Path) -> None:
    edits = suggested(tmp_path, NET)
    numbers = {
        (function.rpartition(".")[0], edit["dump"]["name"]): edit["dump"].get("layer_id")
        for function, found in edits.items()
        for edit in found
        if "dump" in edit
    }
    assert numbers == {
        ("build.Mlp", "down"): None,
        ("build.Mlp", "up"): None,
        ("build.Attention", "qkv_proj"): "self.place",
        ("build.Block", "norm"): "self.attention.place",
        ("build.Block", "attention"): "self.attention.place",
        ("build.Block", "block_mlp"): "self.attention.place",
        ("build.Net", "embed"): None,
        ("build.Net", "block"): "block.attention.place",
        ("build.Net", "net_mlp"): "n + 1",
    }
    assert {"match": "x = mlp(...)", "tags": {"layer_id": "n + 1"}} in edits["build.Net.forward"], "what does not know"
    known = {"match": "x = block(...)", "tags": {"layer_id": "block.attention.place"}}
    assert known in edits["build.Net.forward"], "its MLP does not know"


HYBRID = block("""
    class Attention:
        def __init__(self, config, layer_idx):
            self.layer_idx = layer_idx
            self.o_proj = Linear(config)

        def forward(self, x):
            attn_output = self.o_proj(x)
            return attn_output, None

    class Mixer:
        def __init__(self, config, layer_idx):
            self.layer_idx = layer_idx
            self.A_log = Parameter(config)
            self.out_proj = Linear(config)

        def forward(self, x):
            out = self.out_proj(x)
            return out

    class Layer:
        def __init__(self, config, layer_idx):
            if config.kinds[layer_idx] == "attention":
                self.self_attn = Attention(config, layer_idx)
            else:
                self.mixer = Mixer(config, layer_idx)
            self.norm = Norm(config)

        def forward(self, hidden_states):
            hidden_states = self.norm(hidden_states)
            if self.attends:
                hidden_states, self_attn_weights = self.self_attn(hidden_states)
            else:
                hidden_states = self.mixer(hidden_states)
            return hidden_states

    class Net:
        def __init__(self, config):
            layers = []
            for i in range(config.depth):
                layers.append(Layer(config, layer_idx=i))
            self.layers = ModuleList(layers)

        def forward(self, input_ids):
            hidden_states = input_ids
            for layer in self.layers:
                hidden_states = layer(hidden_states)
            return hidden_states
""")


def test_layers_of_a_hybrid_have_their_number_from_the_mixer_that_they_have(tmp_path: Path) -> None:
    edits = suggested(tmp_path, HYBRID)
    taps = {edit["dump"]["name"]: edit["dump"] for found in edits.values() for edit in found if "dump" in edit}
    number = 'self.self_attn.layer_idx if hasattr(self, "self_attn") else self.mixer.layer_idx'
    assert taps["norm"]["layer_id"] == taps["mixer"]["layer_id"] == taps["self_attn"]["layer_id"] == number
    of_the_layer = 'layer.self_attn.layer_idx if hasattr(layer, "self_attn") else layer.mixer.layer_idx'
    assert taps["layer"]["layer_id"] == of_the_layer, "the list is filled before it is a part"


TABLE = block("""
    class Experts:
        def __init__(self, width):
            self.up = nn.Linear(width, width)

        def forward(self, x):
            return self.up(x)

    class Mixture:
        def __init__(self, width):
            self.norm = nn.LayerNorm(width)
            self.experts = Experts(width)

        def forward(self, x):
            batch, length, width = x.shape
            x = x.view(-1, width)
            x = self.norm(x)
            x = self.experts(x)
            return x.view(batch, length, width)

    class Layer:
        def __init__(self, width):
            self.norm = nn.LayerNorm(width)
            self.mixture = Mixture(width)

        def forward(self, x):
            x = self.norm(x)
            x = self.mixture(x)
            return x

    KINDS = {"mixture": Layer}

    class Net:
        def __init__(self, width, kinds):
            self.embed = nn.Embedding(10, width)
            self.last = nn.LayerNorm(width)
            self.layers = nn.ModuleList([KINDS[kind](width) for kind in kinds])

        def forward(self, input_ids):
            x = self.embed(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.last(x)

    class Head:
        def __init__(self, width, kinds):
            self.net = Net(width, kinds)

        def forward(self, input_ids):
            return self.net(input_ids)
""")


def test_router_and_experts_have_the_names_that_the_comparator_knows(tmp_path: Path) -> None:
    source = block("""
        class Mixture:
            def __init__(self, width):
                self.gate = Router(width)
                self.experts = Experts(width)

            def forward(self, x):
                _, weights, chosen = self.gate(x)
                x = self.experts(x, chosen, weights)
                return x
    """)
    assert suggested(tmp_path, source)["Mixture.forward"] == [
        {
            "wrap": "self.gate(...)",
            "dump": {"name": "moe_router_logits", "value": "$MATCH[0] if isinstance($MATCH, tuple) else $MATCH"},
        },
        {
            "match": "x = self.experts(...)",
            "dump": {
                "name": "moe_expert_output",
                "value": "x",
                "inputs": ["moe_router_logits"],
                "operation": "moe",
            },
        },
    ]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("class Router:\n    def __init__(self, width):\n        self.correction_bias = Buffer(width)\n", "self.gate."),
        (
            "class Statistics:\n    def __init__(self, width):\n        self.correction_bias = Parameter(width)\n"
            "class Router:\n    def __init__(self, width):\n        self.counted = Statistics(width)\n",
            "self.gate.counted.",
        ),
    ],
    ids=["of the router", "of a part of it"],
)
def test_a_bias_that_is_added_for_the_choice_is_recorded(classes: str, expected: str, tmp_path: Path) -> None:
    source = classes + block("""
        class Mixture:
            def __init__(self, width):
                self.gate = Router(width)
                self.experts = Experts(width)

            def forward(self, x):
                return self.experts(x, *self.gate(x))
    """)
    (tap,) = [
        edit["dump"]
        for edit in suggested(tmp_path, source)["Mixture.forward"]
        if edit.get("dump", {}).get("name") == "moe_correction_bias"
    ]
    assert tap["value"].startswith(f"{expected}correction_bias.reshape(1, -1).expand(")
    assert tap["if"] == f"{expected}correction_bias is not None"


def test_what_is_computed_of_the_whole_cache_is_left_out(tmp_path: Path) -> None:
    source = block("""
        class Attention:
            def __init__(self, width):
                self.down = nn.Linear(width, 8)
                self.up = nn.Linear(8, width)
                self.out = nn.Linear(width, width)

            def expand(self, latent, scale):
                return self.up(latent) * scale

            def forward(self, x, cache):
                latent = self.down(x)
                if cache is not None:
                    latent, _ = cache.update(latent, latent)
                keys = self.expand(latent, 2)
                return self.out(keys)
    """)
    (tmp_path / "mod.py").write_text(source)
    text = suggest_config("mod", ModuleFinder([tmp_path]))
    assert "# Left out, because it is computed of all that is cached: self.up in mod.Attention.expand\n" in text
    names = [edit["dump"]["name"] for patch in yaml.safe_load(text)["patches"] for edit in patch["edits"]]
    assert names == ["down", "out"]


def test_heads_that_are_rows_are_recorded_with_the_shape_that_they_get_again(tmp_path: Path) -> None:
    source = block("""
        class Mixer:
            def __init__(self, width):
                self.norm = RMSNorm(width)
                self.last = RMSNorm(width)

            def forward(self, hidden_states, shape):
                x = hidden_states.relu()
                x = x.reshape(-1, x.shape[-1])
                x = self.norm(x)
                x = x.reshape(shape)
                y = self.last(x)
                y = y.reshape(2, 3, -1)
                return y
    """)
    edits = suggested(tmp_path, source)["Mixer.forward"]
    places = {edit["dump"]["name"]: edit["match"] for edit in edits if "match" in edit}
    assert places == {"norm": "x = x.reshape(shape)", "last": "y = self.last(...)"}


def test_what_has_no_row_for_each_token_is_not_tapped(tmp_path: Path) -> None:
    source = block("""
        class Mixer:
            def __init__(self, width):
                self.places = LearnedPositionalEmbedding(9, width)
                self.conv = nn.Conv1d(width, width, 3, padding=2)
                self.out = nn.Linear(width, width)

            def forward(self, hidden_states):
                where = self.places(hidden_states)
                x = self.conv(hidden_states.transpose(1, 2))
                x = self.out(x.transpose(1, 2) + where)
                return x
    """)
    names = [edit["dump"]["name"] for edit in suggested(tmp_path, source)["Mixer.forward"]]
    assert names == ["out"]


ENCODER_AND_DECODER = block("""
    class Attention:
        def __init__(self, width, number):
            self.number = number
            self.keys = nn.Linear(width, width)

        def forward(self, hidden_states, key_value_states=None):
            x = key_value_states if key_value_states is not None else hidden_states
            keys = self.keys(x)
            return keys

    class Encoder:
        def __init__(self, width):
            self.layers = nn.ModuleList([Attention(width, number) for number in range(2)])

        def forward(self, input_ids, attention_mask=None):
            for layer in self.layers:
                x = layer(x)
            return x

    class Decoder(Encoder):
        def __init__(self, width):
            self.layers = nn.ModuleList([Attention(width, number) for number in range(2)])

        def forward(self, input_ids, attention_mask=None, states=None):
            for layer in self.layers:
                x = layer(x, states)
            return x

    class Both:
        def __init__(self, width):
            self.encoder = Encoder(width)
            self.decoder = Decoder(width)

        def forward(self, input_ids, decoder_input_ids):
            states = self.encoder(input_ids)
            return self.decoder(decoder_input_ids, None, states)

    class Head:
        def __init__(self, width):
            self.model = Both(width)
            self.head = nn.Linear(width, width)

        def forward(self, input_ids, decoder_input_ids):
            output = self.model(input_ids, decoder_input_ids)
            logits = self.head(output)
            return logits
""")


def test_each_call_of_an_encoder_or_a_decoder_is_a_step(tmp_path: Path) -> None:
    edits = suggested(tmp_path, ENCODER_AND_DECODER)
    for name in ("Encoder", "Decoder"):
        step, tags, layer = edits[f"{name}.forward"]
        assert step == {"at": "entry", "step": {"batch": "$arguments"}}
        assert tags["tags"] == {"layer_id": "layer.number", "stack": f'"{name.lower()}"'}
        assert layer["dump"]["stack"] == f'"{name.lower()}"'
    head, end = edits["Head.forward"]
    assert head["dump"]["name"] == "head"
    assert end == {"at": "return", "end_step": True}
    assert "Both.forward" not in edits


def test_an_encoder_that_is_given_no_tokens_has_the_rows_of_its_layers(tmp_path: Path) -> None:
    source = ENCODER_AND_DECODER.replace(
        "def forward(self, input_ids, attention_mask=None):", "def forward(self, sound):"
    )
    source = source.replace(
        "            for layer in self.layers:\n", "            x = sound\n            for layer in self.layers:\n"
    )
    assert "def forward(self, sound):" in source
    entry, loop, *_ = suggested(tmp_path, source)["Encoder.forward"]
    assert entry == {"at": "entry", "step": True}
    assert loop == {"match": "for layer in self.layers:", "before": True, "step": {"batch": '{"inputs_embeds": x}'}}


def test_what_a_cross_attention_makes_of_the_other_side_is_left_out(tmp_path: Path) -> None:
    keys = next(edit for edit in suggested(tmp_path, ENCODER_AND_DECODER)["Attention.forward"] if "match" in edit)
    assert keys["dump"]["if"] == "key_value_states is None"


def test_a_layer_that_is_made_from_a_table_is_no_step(tmp_path: Path) -> None:
    edits = suggested(tmp_path, TABLE)
    steps = [name for name, found in edits.items() if any("step" in edit for edit in found)]
    assert steps == ["Head.forward"], "the one that takes tokens and is no part of another"


def test_no_dims_are_guessed_where_batches_are_made_flat(tmp_path: Path) -> None:
    edits = suggested(tmp_path, TABLE)
    dims = {
        (name.partition(".")[0], edit["dump"]["name"]): edit["dump"].get("dims")
        for name, found in edits.items()
        for edit in found
        if "dump" in edit
    }
    assert {value for (owner, _), value in dims.items() if owner in ("Mixture", "Experts")} == {None}
    assert dims["Layer", "layer_norm"] == "b s h"


def test_a_recurrence_is_known_by_its_decays(tmp_path: Path) -> None:
    edits = suggested(tmp_path, HYBRID)
    taps = {edit["dump"]["name"]: edit["dump"] for found in edits.values() for edit in found if "dump" in edit}
    assert {name for name, tap in taps.items() if tap.get("operation") == "recurrence"} == {"mixer", "out_proj"}


def test_weights_of_an_attention_are_not_tapped(tmp_path: Path) -> None:
    edits = suggested(tmp_path, HYBRID)
    assert "weights" not in str([edit.get("dump") for found in edits.values() for edit in found])


def test_the_whole_model_is_a_step(tmp_path: Path) -> None:
    edits = suggested(tmp_path, NET)
    steps = {name: [edit for edit in found if "step" in edit or "end_step" in edit] for name, found in edits.items()}
    assert {name: found for name, found in steps.items() if found} == {
        "build.Net.forward": [
            {"at": "entry", "step": {"batch": "$arguments"}},
            {"at": "return", "end_step": True},
        ]
    }
    assert "step" not in str(suggested(tmp_path, NET, "net.build.Block"))


def test_dims_are_guessed_where_they_can_be(tmp_path: Path) -> None:
    edits = suggested(tmp_path, NET)
    dims = {
        edit["dump"]["name"]: edit["dump"].get("dims") for found in edits.values() for edit in found if "dump" in edit
    }
    assert dims == {
        "down": "b s h[tp:partial]",
        "up": "b s n",
        "qkv_proj": None,  # heads of three kinds lie in it
        "norm": "b s h",
        "attention": "b s h",
        "block_mlp": "b s h[tp:partial]",
        "embed": "b s h",
        "block": "b s h",
        "net_mlp": "b s h[tp:partial]",
    }


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ("batch, length, _ = x.shape", "b s"),
        ("b, s, h = x.size()", "b s"),
        ("tokens, width = x.shape", "t"),
        ("a, b, c = x.shape", None),
        ("b, s, h = x.shape; t, h = x.shape", None),
    ],
)
def test_rows_lie_as_shapes_say(tmp_path: Path, shape: str, rows: str | None) -> None:
    (tmp_path / "net.py").write_text(f"class A:\n    def forward(self, x):\n        {shape}\n")
    module = ModuleFinder([tmp_path]).find("net")
    assert module is not None
    assert rows_of(module) == rows


@pytest.mark.parametrize(
    ("loop", "found"),
    [
        ("for layer in self.layers: pass", LayerLoop("layer", "layers")),
        ("for layer in self.layers[a:b]: pass", LayerLoop("layer", "layers")),
        ("for i, layer in enumerate(self.layers): pass", LayerLoop("layer", "layers", "i")),
        ("for i, layer in enumerate(self.layers[self.a : b]): pass", LayerLoop("layer", "layers", "i + self.a")),
        ("for i, layer in enumerate(self.layers[a:b], a): pass", LayerLoop("layer", "layers", "i")),
        ("for i, layer in enumerate(islice(self.layers, a, b)): pass", LayerLoop("layer", "layers", "i + a")),
        ("for layer, cache in zip(self.layers, caches): pass", LayerLoop("layer", "layers")),
        ("for i, (layer, cache) in enumerate(zip(self.layers, caches)): pass", LayerLoop("layer", "layers", "i")),
        ("for i in range(a, b):\n    if i: layer = self.layers[i]", LayerLoop("layer", "layers", "i")),
        ("for layer in layers: pass", None),
    ],
)
def test_loops_over_layers(loop: str, found: LayerLoop | None) -> None:
    assert loops_in(ast.parse(loop)) == ({} if found is None else {found.variable: found})


@pytest.mark.parametrize(
    ("callee", "number"),
    [("self.layers[i]", "i"), ("self.layers[i + self.start]", "i + self.start"), ("self.parts['a']", None)],
)
def test_layers_that_are_called_by_index(callee: str, number: str | None) -> None:
    found = called_by_index(callee)
    assert (found and found.number) == number


def test_what_is_suggested_records_each_layer_with_its_number(tmp_path: Path) -> None:
    source = block("""
        class Layer:
            def __init__(self, where):
                self.where = where
                self.double = lambda x: 2 * x
            def __call__(self, hidden_states):
                hidden_states = self.double(hidden_states)
                return hidden_states
        class Net:
            def __init__(self, depth):
                self.layers = [Layer(i) for i in range(depth)]
            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)
                return x
    """)
    (tmp_path / "mod.py").write_text(source)
    module, recorded = run_module(tmp_path, source, suggest_config("mod", ModuleFinder([tmp_path])))
    assert module.Net(2).forward(1) == 4
    assert recorded.log == [
        ("step", None, {}),
        ("layer_input", 1, None, {"layer_id": 0}),
        ("double", 2, None, {"layer_id": 0}),
        ("layer", 2, None, {"layer_id": 0}),
        ("layer_input", 2, None, {"layer_id": 1}),
        ("double", 4, None, {"layer_id": 1}),
        ("layer", 4, None, {"layer_id": 1}),
        ("end_step",),
    ]

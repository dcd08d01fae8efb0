"""The keyword arguments of a Transformers model as a token layout."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dumper import open_run
from dumper.adapters.transformers import TransformersAdapter
from dumper.layout import TokenLayout
from dumper.recording.recorder import Recorder


def cache(length: int) -> Any:
    class Cache(SimpleNamespace):
        def get_seq_length(self) -> int:
            return int(self.length)

        __hash__ = object.__hash__

    return Cache(length=length)


def read(adapter: TransformersAdapter | None = None, **arguments: Any) -> TokenLayout:
    adapter = adapter or TransformersAdapter()
    assert adapter.accepts(arguments)
    layout = adapter.read_batch(arguments)
    assert isinstance(layout, TokenLayout)
    return layout


def rows(layout: TokenLayout) -> list[tuple[int, int] | None]:
    """Per row its sequence index and position, None for padding."""
    sequence, position = layout.row_identities()
    return [(int(s), int(p)) if s >= 0 else None for s, p in zip(sequence, position, strict=True)]


def test_a_batch_without_padding() -> None:
    layout = read(input_ids=torch.tensor([[1, 2, 3]]))
    assert layout.forward_mode == "prefill"
    assert layout.batch_shape == (1, 3)
    assert rows(layout) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 1, 1], [1, 1, 1]], [None, (0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]),
        ([[1, 1, 0], [1, 1, 1]], [(0, 0), (0, 1), None, (1, 0), (1, 1), (1, 2)]),
        ([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], [(0, 0), (0, 1), None, (1, 0), (1, 1), (1, 2)]),
    ],
    ids=["left", "right", "static cache"],
)
def test_padding_has_no_identity(mask: list[list[int]], expected: list[Any]) -> None:
    layout = read(input_ids=torch.ones(2, 3, dtype=torch.int64), attention_mask=torch.tensor(mask))
    assert rows(layout) == expected
    assert layout.real_rows == 5
    assert [(span.start, span.count) for span in layout.sequences] == [(0, 2), (0, 3)]


def test_decoding_after_left_padding() -> None:
    layout = read(
        input_ids=torch.tensor([[7], [8]]),
        attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
        past_key_values=cache(3),
    )
    assert layout.forward_mode == "decode"
    assert rows(layout) == [(0, 2), (1, 3)]


def test_a_mask_of_this_pass_alone_counts_on_from_the_cache() -> None:
    layout = read(input_ids=torch.tensor([[7, 8]]), attention_mask=torch.tensor([[1, 1]]), past_key_values=cache(3))
    assert rows(layout) == [(0, 3), (0, 4)]


def per_query(mask: list[list[int]], past: int = 0, width: int = 0, opened: bool = False) -> torch.Tensor:
    """The causal mask, additive and (batch, 1, queries, keys), that a 2-D mask of past and pass means.

    ``opened``: rows of padding see everything, as scaled_dot_product_attention wants it.
    """
    real = torch.tensor(mask, dtype=torch.bool)
    keys = real.shape[1]
    seen = torch.ones(keys - past, keys, dtype=torch.bool).tril(past) & real[:, None, :]
    seen = torch.nn.functional.pad(seen, (0, max(width - keys, 0)))
    if opened:
        seen = seen | ~seen.any(-1, keepdim=True)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("width", [0, 9], ids=["dynamic cache", "static cache"])
@pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1, 0], [1, 1, 1]]], ids=["left", "right"])
def test_padding_in_a_mask_per_query(mask: list[list[int]], width: int, opened: bool) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    expected = rows(read(input_ids=ids, attention_mask=torch.tensor(mask)))
    additive = per_query(mask, width=width, opened=opened)
    assert rows(read(input_ids=ids, attention_mask=additive)) == expected
    assert rows(read(input_ids=ids, attention_mask=additive > -1)) == expected


def test_decoding_with_a_mask_per_query() -> None:
    mask = per_query([[0, 1, 1, 1], [1, 1, 1, 1]], past=3, width=8)
    layout = read(input_ids=torch.tensor([[7], [8]]), attention_mask=mask, cache=cache(3))
    assert layout.forward_mode == "decode"
    assert rows(layout) == [(0, 2), (1, 3)]


def test_a_mask_per_query_that_is_not_causal_tells_nothing_of_padding() -> None:
    with pytest.raises(ValueError, match="not causal"):
        read(input_ids=torch.ones(1, 4, dtype=torch.int64), attention_mask=torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    "arguments",
    [
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1]])},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1]]), "attention_mask": torch.ones(1, 5, dtype=torch.int64)},
        {"cu_seq_lens_q": torch.tensor([0, 3, 5], dtype=torch.int32)},
    ],
    ids=["position ids", "position ids beside a mask of ones", "cumulative lengths"],
)
def test_packed_sequences(arguments: dict[str, Any]) -> None:
    layout = read(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), **arguments)
    assert rows(layout) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [span.id for span in layout.sequences] == ["0-0", "0-1"]


def test_packed_rows_of_a_batch_with_padding() -> None:
    layout = read(
        input_ids=torch.ones(2, 5, dtype=torch.int64),
        position_ids=torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 0, 0]]),
        attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    )
    first = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert rows(layout) == [*first, (2, 0), (3, 0), (3, 1), None, None]


def test_padding_behind_packed_sequences() -> None:
    layout = read(input_ids=torch.ones(1, 5, dtype=torch.int64), cu_seq_lens_q=torch.tensor([0, 1, 4]))
    assert rows(layout) == [(0, 0), (1, 0), (1, 1), (1, 2), None]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [4, 9]),
        ({"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}, [4, 9]),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}, [2, 9]),
        ({"attention_mask": per_query([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], opened=True)}, [2, 9]),
        ({"position_ids": torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]])}, [1, 4, 9]),
        ({"attention_mask": torch.ones(2, 8), "cache": cache(8)}, [4, 9]),
    ],
    ids=["plain", "left", "right", "right, per query", "packed", "cached"],
)
def test_the_rows_of_last_tokens(arguments: dict[str, Any], expected: list[int]) -> None:
    """Those of the layout, where it calls a row the last of its sequence."""
    value = torch.arange(10.0).reshape(2, 5, 1)
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.int64), **arguments}
    assert TransformersAdapter().last_tokens(value, batch)[:, 0].tolist() == expected
    # As with logits_to_keep: only the last columns are there.
    kept = [row for row in expected if row % 5 >= 2]
    assert TransformersAdapter().last_tokens(value[:, 2:], batch)[:, 0].tolist() == kept


def test_sequences_keep_their_names_while_one_cache_fills() -> None:
    adapter, first, second = TransformersAdapter(), cache(0), cache(0)
    ids = {"input_ids": torch.tensor([[1]])}

    def name(**arguments: Any) -> str:
        return read(adapter, **ids, **arguments).sequences[0].id

    assert name(past_key_values=first) == "0-0"
    assert name(past_key_values=second) == "1-0"  # two models that decode in turn, as in assisted decoding
    first.length, second.length = 1, 1
    assert name(past_key_values=first) == "0-0"
    assert name(past_key_values=second) == "1-0"
    assert name() == "2-0"
    first.length = 0
    assert name(past_key_values=first) == "3-0"  # emptied and used again


def test_a_cache_that_the_first_pass_made_continues_its_call() -> None:
    """Loops by hand begin without a cache and go on with the one that the first pass returns."""
    adapter, made, unused, other = TransformersAdapter(), cache(4), cache(4), cache(3)
    prompt, one = {"input_ids": torch.tensor([[1, 2, 3, 4]])}, {"input_ids": torch.tensor([[1]])}

    def name(**arguments: Any) -> str:
        return read(adapter, **arguments).sequences[0].id

    assert name(**prompt, use_cache=False) == "0-0"
    assert name(**one, past_key_values=unused) == "1-0", "that pass made none"
    assert name(**prompt) == "2-0"
    assert name(**one, past_key_values=other) == "3-0", "another length"
    assert name(**one, past_key_values=made) == "2-0"
    made.length = 5
    assert name(**one, past_key_values=made) == "2-0"
    assert name(**{"input_ids": torch.tensor([[1, 2]] * 2)}) == "4-0"
    assert name(**one, past_key_values=cache(2)) == "5-0", "other sequences"


def test_a_cache_whose_first_layer_stays_empty() -> None:
    """RecurrentGemma holds the states of its recurrent layers itself."""
    lengths = [0, 3, 0]
    layers = [SimpleNamespace(get_seq_length=lambda at=at: lengths[at]) for at in range(3)]
    layers[2].get_seq_length = lambda: 1 / 0
    filled = cache(0)
    filled.layers = layers
    layout = read(
        input_ids=torch.tensor([[7], [8]]),
        attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
        past_key_values=filled,
    )
    assert layout.forward_mode == "decode"
    assert rows(layout) == [(0, 2), (1, 3)]


@pytest.mark.parametrize("argument", ["cache_params", "past_key_values"])
def test_a_cache_of_states_that_counts_no_tokens(argument: str) -> None:
    """Of Mamba: where its passes stand is known from those before."""

    class States(SimpleNamespace):
        def get_seq_length(self) -> int:
            raise ValueError("only of attention layers")

        def has_previous_state(self) -> bool:
            return bool(self.filled)

        __hash__ = object.__hash__

    adapter, states = TransformersAdapter(), States(filled=False)
    padded = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    one = {"input_ids": torch.ones(2, 1, dtype=torch.int64)}
    for first in ({argument: states}, {}):
        states.filled = False
        call = read(adapter, **padded, **first).sequences[0].id
        states.filled = True
        assert rows(read(adapter, **one, **{argument: states})) == [(0, 2), (1, 3)]
        last = read(adapter, **one, **{argument: states})
        assert (rows(last), last.sequences[0].id) == ([(0, 3), (1, 4)], call)
        value = torch.arange(2.0).reshape(2, 1, 1)
        assert adapter.last_tokens(value, {**one, argument: states}).tolist() == [[0.0], [1.0]]
        states = States(filled=False)


def test_a_training_batch_and_embeddings() -> None:
    layout = read(inputs_embeds=torch.zeros(2, 3, 8), labels=torch.zeros(2, 3))
    assert layout.forward_mode == "train"
    assert layout.token_ids is None
    assert layout.rows == 6


class Gate(torch.nn.Module):
    """Chooses by sigmoid scores."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("e_score_correction_bias", torch.zeros(4))


class Model(torch.nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.gate = Gate()
        self.config = SimpleNamespace(**config)


@pytest.mark.parametrize("names", [{"num_experts_per_tok": 2, "n_group": 4}, {"moe_k": 2, "n_groups": 4}])
def test_the_model_that_is_called_tells_its_config(
    names: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="run", control=False)
    model = Model(
        head_dim=32, v_head_dim=None, rope_parameters={"rope_theta": 1e4}, _attn_implementation="eager", **names
    )
    with recorder.step({"self": model, "input_ids": torch.ones(1, 3, dtype=torch.int64)}):
        recorder.dump("x", torch.ones(1, 3))
    recorder.close()
    settings = open_run(tmp_path / "run").headers[0].settings
    assert {name: value for name, value in settings.items() if name.startswith("model.")} == {
        "model.head_dim": "32",
        "model.rope_theta": "10000.0",
        "model.num_experts_per_tok": "2",
        "model.n_group": "4",
        "model.topk_method": "noaux_tc",
        "model.scoring_func": "sigmoid",
        "model.attn_implementation": "eager",
    }


def test_what_is_called_may_be_anything() -> None:
    assert TransformersAdapter().model_facts({"self": object(), "input_ids": torch.ones(1, 3)}) == {}


def test_a_mask_that_is_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="attention mask of 2 columns for 3 tokens"):
        read(input_ids=torch.ones(1, 3, dtype=torch.int64), attention_mask=torch.ones(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_generation_of_a_real_model(padding: str) -> None:
    """Every row of every pass of ``generate`` is the token that its identity says."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=32, pad_token_id=257, eos_token_id=None,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]] if padding == "none" else [[5, 6], [9, 10, 11, 12]]
    width = max(map(len, prompts))
    fill = [[257] * (width - len(prompt)) for prompt in prompts]
    padded = [pad + p if padding == "left" else p + pad for p, pad in zip(prompts, fill, strict=True)]
    input_ids = torch.tensor(padded)
    mask = (input_ids != 257).long()

    adapter, layouts = TransformersAdapter(), []
    forward = model.forward

    def recorded(*arguments: Any, **keywords: Any) -> Any:
        layouts.append(read(adapter, **keywords))
        return forward(*arguments, **keywords)

    model.forward = recorded
    output = model.generate(input_ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    tokens = [[*prompt, *row[width:].tolist()] for prompt, row in zip(prompts, output, strict=True)]
    assert [layout.forward_mode for layout in layouts] == ["prefill"] + ["decode"] * 4
    assert {span.id for layout in layouts for span in layout.sequences} == {"0-0", "0-1"}
    seen: set[tuple[int, int]] = set()
    for layout in layouts:
        sequence, position = layout.row_identities()
        assert layout.token_ids is not None
        for row in np.flatnonzero(sequence >= 0):
            identity = int(sequence[row]), int(position[row])
            assert layout.token_ids[row] == tokens[identity[0]][identity[1]]
            assert identity not in seen
            seen.add(identity)
    assert len(seen) == sum(len(sequence) - 1 for sequence in tokens)  # the last token is never an input

"""The arguments of Megatron-core's model as a token layout, and its own groups and slicing on gloo ranks."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dumper.adapters import describe_process
from dumper.adapters.megatron import MegatronAdapter, ModelInput, build_layout, zigzag_positions
from dumper.layout import TokenLayout
from testbed.ranks import run_ranks
from testbed.wheels import unpacked_wheel


def rows(layout: TokenLayout) -> list[tuple[int, int] | None]:
    sequence, position = layout.row_identities()
    return [(int(s), int(p)) if s >= 0 else None for s, p in zip(sequence, position, strict=True)]


def read(**arguments: Any) -> TokenLayout:
    adapter = MegatronAdapter()
    batch = {"packed_seq_params": None, **arguments}
    assert adapter.accepts(batch)
    layout = adapter.read_batch(batch)
    assert isinstance(layout, TokenLayout)
    return layout


def test_a_batch_is_its_sequences() -> None:
    layout = read(input_ids=torch.arange(6).view(2, 3))
    assert layout.forward_mode == "train"
    assert layout.batch_shape == (2, 3)
    assert rows(layout) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_packed_sequences_with_padding_between_and_after_them() -> None:
    packed = SimpleNamespace(cu_seqlens_q=torch.tensor([0, 3, 4]), cu_seqlens_q_padded=torch.tensor([0, 4, 6]))
    layout = read(input_ids=torch.arange(8).view(1, 8), packed_seq_params=packed)
    assert rows(layout) == [(0, 0), (0, 1), (0, 2), None, (1, 0), None, None, None]
    assert [(span.start, span.count) for span in layout.sequences] == [(0, 3), (0, 1)]


def test_inference_with_a_cache() -> None:
    context = SimpleNamespace(sequence_len_offset=7)
    layout = read(tokens=torch.tensor([[1], [2]]), inference_context=context)
    assert layout.forward_mode == "decode"
    assert rows(layout) == [(0, 7), (1, 7)]


def test_what_continues_a_cache_belongs_to_the_sequences_that_filled_it() -> None:
    adapter = MegatronAdapter()
    ids = []
    for offset, columns in ((0, 3), (3, 1), (4, 1), (0, 3)):
        batch = {
            "tokens": torch.zeros(2, columns, dtype=torch.long),
            "packed_seq_params": None,
            "inference_context": SimpleNamespace(sequence_len_offset=offset),
        }
        layout = adapter.read_batch(batch)
        assert isinstance(layout, TokenLayout)
        ids.append([span.id for span in layout.sequences])
    assert ids[0] == ids[1] == ids[2]
    assert not set(ids[3]) & set(ids[0])


def test_lengths_that_contradict_the_tokens_are_refused() -> None:
    packed = SimpleNamespace(cu_seqlens_q=torch.tensor([0, 3, 9]), cu_seqlens_q_padded=None)
    with pytest.raises(ValueError, match="packed sequences of 9 tokens, but 8 rows"):
        read(input_ids=torch.arange(8).view(1, 8), packed_seq_params=packed)
    with pytest.raises(ValueError, match="5 tokens cannot be split over 2"):
        zigzag_positions(5, 0, 2)


def test_arguments_of_a_transformers_model_are_not_accepted() -> None:
    assert not MegatronAdapter().accepts({"input_ids": torch.zeros(1, 2)})


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    size=st.integers(1, 4),
)
def test_the_parts_of_all_ranks_are_every_token_once(lengths: list[int], size: int) -> None:
    padded = [-(-length // (2 * size)) * 2 * size for length in lengths]
    bounds, padded_bounds = np.cumsum([0, *lengths]), np.cumsum([0, *padded])
    found = []
    for rank in range(size):
        local = int(padded_bounds[-1]) // size
        given_ = ModelInput(0, "train", (1, local), rank, size, 0, np.zeros(local, np.int64), bounds, padded_bounds)
        layout = build_layout(given_)
        assert layout.context_parallel is None if size == 1 else layout.context_parallel is not None
        found += [identity for identity in rows(layout) if identity is not None]
    assert sorted(found) == [(index, p) for index, length in enumerate(lengths) for p in range(length)]


Seen = tuple[int | None, int, str | None, dict[str, tuple[int, int]], bool]


def import_megatron(packages: str, rendezvous: str) -> None:
    sys.path.append(packages)
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state, utils  # noqa: F401


def run_rank(rank: int, packages: str, rendezvous: str) -> Seen:
    """One of four gloo ranks with Megatron's own groups: its axes, and what its own slicing gives it."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="4", LOCAL_RANK=str(rank))
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=4)
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, context_parallel_size=2)
    whole = {"tokens": torch.arange(16).view(2, 8), "position_ids": torch.arange(8).repeat(2, 1)}
    part = get_batch_on_this_cp_rank(whole)
    layout = MegatronAdapter().read_batch({**part, "packed_seq_params": None})
    assert isinstance(layout, TokenLayout)
    process = describe_process()
    expected = [(row, int(p)) for row in range(2) for p in part["position_ids"][row]]
    torch.distributed.barrier()  # no rank leaves the group before all have what they came for
    return process.rank, process.world_size, process.framework, dict(process.parallel), rows(layout) == expected


@pytest.mark.slow
def test_real_groups_and_real_slicing(tmp_path: Path) -> None:
    # Not in the environment: SGLang imports it where it finds it, and every server would take longer to start.
    packages = str(unpacked_wheel("megatron-core", "0.16.1"))
    seen = run_ranks(run_rank, 4, packages, f"file://{tmp_path}/rendezvous", prepare=import_megatron)
    for rank, (number, world_size, framework, parallel, same) in enumerate(seen):
        assert (number, world_size, framework) == (rank, 4, "megatron")
        assert parallel["tp"] == (rank % 2, 2)
        assert parallel["cp"] == (rank // 2, 2)
        assert parallel["dp"] == (0, 1)
        assert same


def test_a_gpt_model_tells_its_config_under_the_names_of_transformers() -> None:
    """So that headers of a trainer and a server can be compared; rope_theta is a number with a point in both."""
    config = SimpleNamespace(
        params_dtype="torch.bfloat16",
        hidden_size=64,
        num_attention_heads=8,
        kv_channels=32,
        layernorm_epsilon=1e-6,
        normalization="RMSNorm",
        num_moe_experts=None,
    )
    model = SimpleNamespace(
        config=config, rotary_base=10000, position_embedding_type="rope", share_embeddings_and_output_weights=False
    )
    dense = {
        "model.dtype": "bfloat16",
        "model.hidden_size": "64",
        "model.num_attention_heads": "8",
        "model.head_dim": "32",
        "model.rms_norm_eps": "1e-06",
        "model.rope_theta": "10000.0",
        "model.tie_word_embeddings": "False",
    }
    assert MegatronAdapter().model_facts({"self": model}) == dense
    config.num_moe_experts, config.moe_router_topk, config.moe_router_pre_softmax = 4, 2, False
    experts = {"model.num_experts_per_tok": "2", "model.norm_topk_prob": "True"}
    assert MegatronAdapter().model_facts({"self": model}) == dense | experts
    config.moe_router_score_function, config.moe_router_enable_expert_bias = "sigmoid", True
    facts = MegatronAdapter().model_facts({"self": model})
    assert (facts["model.scoring_func"], facts["model.topk_method"]) == ("sigmoid", "noaux_tc")
    assert MegatronAdapter().model_facts({"self": SimpleNamespace()}) == {}
    assert MegatronAdapter().model_facts({}) == {}

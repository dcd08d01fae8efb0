"""SGLang's ForwardBatch of every mode, as both generations of releases leave it, read as a token layout."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dumper.adapters import sglang_parallel
from dumper.adapters.sglang import SGLangAdapter
from dumper.layout import TokenLayout

from .forward_batches import ForwardMode, PaddingMode, after_the_pass, forward_batch, pad_for_data_parallel

PROMPTS = [("a", 0, [11, 12, 13]), ("b", 4, [21, 22])]
DECODES = [("a", 3, [14]), ("b", 6, [23])]
RELEASES = ["old", "new"]


@pytest.fixture
def adapter() -> SGLangAdapter:
    return SGLangAdapter()


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The parallel axes that SGLang reports, to be set by a test."""
    found: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(sglang_parallel, "parallel_axes", lambda: found)
    return found


def read(adapter: SGLangAdapter, batch: Any) -> TokenLayout:
    assert adapter.accepts(batch)
    layout = adapter.read_batch(batch)
    assert isinstance(layout, TokenLayout)
    return layout


def identities(layout: TokenLayout) -> list[tuple[int, int]]:
    """Sequence index and position of every row that is not padding."""
    sequence, position = layout.row_identities()
    return [(int(s), int(p)) for s, p in zip(sequence, position, strict=True) if s >= 0]


def spans(layout: TokenLayout) -> list[tuple[int, int]]:
    return [(span.start, span.count) for span in layout.sequences]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("mode", [ForwardMode.EXTEND, ForwardMode.MIXED, ForwardMode.SPLIT_PREFILL])
def test_extend_modes(adapter: SGLangAdapter, mode: ForwardMode, release: str) -> None:
    sequences = [*PROMPTS, ("c", 9, [31])]
    layout = read(adapter, forward_batch(mode, sequences, release))
    assert layout.forward_mode == mode.name.lower()
    assert spans(layout) == [(0, 3), (4, 2), (9, 1)]
    assert (layout.rows, layout.real_rows) == (6, 6)
    assert layout.token_ids is not None
    assert layout.token_ids.tolist() == [11, 12, 13, 21, 22, 31]
    assert identities(layout) == [(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (2, 9)]
    assert layout.data_parallel is None


@pytest.mark.parametrize("release", RELEASES)
def test_decode_uses_lengths_in_this_pass(adapter: SGLangAdapter, release: str) -> None:
    layout = read(adapter, forward_batch(ForwardMode.DECODE, DECODES, release))
    assert layout.forward_mode == "decode"
    assert spans(layout) == [(3, 1), (6, 1)]
    assert layout.row_sequence is None  # the spans say it all


def test_a_process_that_serves_nothing_has_chosen_no_backends(
    adapter: SGLangAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's modules can be used without a server; its settings are then published by nobody."""

    def get_exec() -> Any:
        raise ValueError("config namespace 'exec' not published")

    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", SimpleNamespace(get_exec=get_exec))
    assert adapter.backends() == {}


def test_request_ids_name_the_sequences(adapter: SGLangAdapter) -> None:
    layout = read(adapter, forward_batch(ForwardMode.EXTEND, PROMPTS))
    assert [span.id for span in layout.sequences] == ["a", "b"]


def test_without_request_ids_a_reused_slot_is_a_new_sequence(adapter: SGLangAdapter) -> None:
    def names(start: int, tokens: list[int], mode: ForwardMode) -> list[str]:
        layout = read(adapter, forward_batch(mode, [("", start, tokens)], "old"))
        return [span.id for span in layout.sequences]

    first = names(0, [1, 2, 3], ForwardMode.EXTEND)
    assert names(3, [4], ForwardMode.DECODE) == first
    assert names(4, [5], ForwardMode.DECODE) == first
    second = names(0, [7, 8], ForwardMode.EXTEND)
    assert second != first
    assert names(2, [9, 9], ForwardMode.EXTEND) == second  # the next chunk of the prompt


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("when", ["inside", "after"])
def test_an_idle_rank_has_a_dummy_row_and_no_token(
    adapter: SGLangAdapter, axes: dict[str, tuple[int, int]], when: str, release: str
) -> None:
    axes["attn_dp"] = (1, 2)
    batch = forward_batch(ForwardMode.IDLE, [], release)
    pad_for_data_parallel(batch, [1, 0], 1, PaddingMode.MAX_LEN, release=release)
    if when == "after":
        after_the_pass(batch, release)
    layout = read(adapter, batch)
    assert layout.forward_mode == "idle"
    assert (layout.rows, layout.real_rows) == (1, 0)
    assert identities(layout) == []
    assert layout.data_parallel is not None
    assert layout.data_parallel.rows == (1, 1)
    assert layout.data_parallel.real_rows == (1, 0)
    assert layout.data_parallel.padding == "max_len"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("when", ["inside", "after"])
def test_decode_padded_to_the_longest_rank(
    adapter: SGLangAdapter, axes: dict[str, tuple[int, int]], when: str, release: str
) -> None:
    axes["attn_dp"] = (0, 2)
    batch = forward_batch(ForwardMode.DECODE, DECODES, release)
    pad_for_data_parallel(batch, [2, 5], 0, PaddingMode.MAX_LEN, release=release)
    if when == "after":
        after_the_pass(batch, release)
    layout = read(adapter, batch)
    assert layout.forward_mode == "decode"
    assert (layout.rows, layout.real_rows) == (5, 2)
    assert identities(layout) == [(0, 3), (1, 6)]
    assert layout.data_parallel is not None
    assert layout.data_parallel.real_rows == (2, 5)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("when", ["inside", "after"])
def test_a_decode_that_is_relabelled_as_extend_stays_a_decode(
    adapter: SGLangAdapter, axes: dict[str, tuple[int, int]], when: str, release: str
) -> None:
    axes["attn_dp"] = (0, 2)
    batch = forward_batch(ForwardMode.DECODE, DECODES, release, is_extend_in_batch=True)
    pad_for_data_parallel(batch, [2, 4], 0, PaddingMode.MAX_LEN, release=release)
    assert batch.forward_mode is ForwardMode.EXTEND
    if when == "after":
        after_the_pass(batch, release)
    layout = read(adapter, batch)
    assert layout.forward_mode == "decode"
    assert spans(layout) == [(3, 1), (6, 1)]
    assert layout.rows == 4


@pytest.mark.parametrize("release", RELEASES)
def test_prefill_gathered_back_to_back_and_aligned_to_attention_tp(
    adapter: SGLangAdapter, axes: dict[str, tuple[int, int]], release: str
) -> None:
    axes["attn_dp"] = (1, 3)
    batch = forward_batch(ForwardMode.EXTEND, PROMPTS, release, is_extend_in_batch=True)
    pad_for_data_parallel(batch, [3, 5, 0], 1, PaddingMode.SUM_LEN, attn_tp=2, release=release)
    layout = read(adapter, batch)
    assert layout.rows == 6
    gather = layout.data_parallel
    assert gather is not None
    assert (gather.rank, gather.size, gather.padding) == (1, 3, "sum_len")
    assert gather.rows == (4, 6, 0)
    # Old releases round the counts of the other ranks up in place; the own count is always exact.
    assert gather.real_rows == ((3, 5, 0) if release == "new" else (4, 5, 0))


@pytest.mark.parametrize("release", RELEASES)
def test_target_verify_has_a_position_per_draft_token(adapter: SGLangAdapter, release: str) -> None:
    speculative = SimpleNamespace(draft_token_num=3, num_tokens_per_req=-1)
    batch = forward_batch(
        ForwardMode.TARGET_VERIFY, [("a", 7, [1, 2, 3]), ("b", 4, [4, 5, 6])], release, spec_info=speculative
    )
    batch.seq_lens = batch.seq_lens_cpu = torch.tensor([7, 4])  # without the draft tokens
    batch.positions = torch.tensor([7, 8, 8, 4, 5, 6])  # a tree on the first, a chain on the second
    layout = read(adapter, batch)
    assert layout.forward_mode == "target_verify"
    assert spans(layout) == [(7, 3), (4, 3)]
    assert identities(layout) == [(0, 7), (0, 8), (0, 8), (1, 4), (1, 5), (1, 6)]
    assert layout.extra["speculative"] == "SimpleNamespace"


@pytest.mark.parametrize("spelt", ["retrieve", "retrive"])
def test_a_tree_of_drafts_says_which_follows_which(adapter: SGLangAdapter, spelt: str) -> None:
    """First children and next siblings, as the engine has them, become the row that each row follows."""
    children = torch.tensor([[1, 3, -1, -1], [1, 2, 3, -1]])
    siblings = torch.tensor([[-1, 2, -1, -1], [-1, -1, -1, -1]])
    tree = {f"{spelt}_next_token": children, f"{spelt}_next_sibling": siblings}
    batch = forward_batch(
        ForwardMode.TARGET_VERIFY,
        [("a", 7, [1, 2, 3, 4]), ("b", 4, [4, 5, 6, 7])],
        spec_info=SimpleNamespace(draft_token_num=4, **tree),
    )
    batch.seq_lens = batch.seq_lens_cpu = torch.tensor([7, 4])
    batch.positions = torch.tensor([7, 8, 8, 9, 4, 5, 6, 7])
    layout = read(adapter, batch)
    assert layout.extra["parents"] == [-1, 0, 0, 1, -1, 4, 5, 6]
    batch.positions = torch.tensor([7, 8, 9, 10, 4, 5, 6, 7])
    assert "parents" not in read(adapter, batch).extra, "a chain needs no words"


def test_links_of_a_tree_that_lead_nowhere_end(adapter: SGLangAdapter) -> None:
    children, siblings = torch.tensor([[1, 9, 0]]), torch.tensor([[0, 1, -7]])
    tree = SimpleNamespace(draft_token_num=3, retrieve_next_token=children, retrieve_next_sibling=siblings)
    batch = forward_batch(ForwardMode.TARGET_VERIFY, [("a", 7, [1, 2, 3])], spec_info=tree)
    batch.seq_lens = batch.seq_lens_cpu = torch.tensor([7])
    batch.positions = torch.tensor([7, 8, 8])
    assert read(adapter, batch).extra["parents"] == [-1, 0, -1]


def test_draft_decode_has_a_row_per_branch(adapter: SGLangAdapter) -> None:
    batch = forward_batch(
        ForwardMode.DECODE, [("a", 7, [1, 2]), ("b", 3, [3, 4])], spec_info=SimpleNamespace(num_tokens_per_req=2)
    )
    batch.positions = torch.tensor([7, 7, 3, 3])
    layout = read(adapter, batch)
    assert identities(layout) == [(0, 7), (0, 7), (1, 3), (1, 3)]


@pytest.mark.parametrize("mode", [ForwardMode.DRAFT_EXTEND, ForwardMode.DRAFT_EXTEND_V2])
def test_draft_extend(adapter: SGLangAdapter, mode: ForwardMode) -> None:
    batch = forward_batch(mode, [("a", 5, [1, 2]), ("b", 9, [3])], spec_info=SimpleNamespace())
    layout = read(adapter, batch)
    assert layout.forward_mode == mode.name.lower()
    assert identities(layout) == [(0, 5), (0, 6), (1, 9)]


def test_tensors_are_read_where_no_list_on_the_host_exists(adapter: SGLangAdapter) -> None:
    batch = forward_batch(
        ForwardMode.EXTEND, PROMPTS, extend_seq_lens_cpu=None, extend_prefix_lens_cpu=None, seq_lens_cpu=None
    )
    assert spans(read(adapter, batch)) == [(0, 3), (4, 2)]


def test_rotary_positions_that_do_not_count_tokens_do_not_change_the_identity(adapter: SGLangAdapter) -> None:
    batch = forward_batch(ForwardMode.EXTEND, [("a", 0, [1, 2, 3])], positions=torch.tensor([0, 0, 1]))
    layout = read(adapter, batch)
    assert identities(layout) == [(0, 0), (0, 1), (0, 2)]
    assert layout.extra["positions"] == [0, 0, 1]


@pytest.mark.parametrize(("zigzag", "ordering"), [([0, 3], "zigzag"), (None, "interleave")])
def test_context_parallel(
    adapter: SGLangAdapter, axes: dict[str, tuple[int, int]], zigzag: list[int] | None, ordering: str
) -> None:
    axes["attn_cp"] = (1, 2)
    metadata = SimpleNamespace(zigzag_index=zigzag)
    layout = read(adapter, forward_batch(ForwardMode.EXTEND, PROMPTS, attn_cp_metadata=metadata))
    assert layout.context_parallel is not None
    assert (layout.context_parallel.rank, layout.context_parallel.ordering) == (1, ordering)
    assert not layout.context_parallel.local


def test_a_batch_with_more_tokens_than_rows_is_refused(adapter: SGLangAdapter) -> None:
    batch = forward_batch(ForwardMode.EXTEND, PROMPTS, input_ids=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="extend pass of 5 tokens has only 2 rows"):
        adapter.read_batch(batch)


def test_other_objects_are_not_accepted(adapter: SGLangAdapter) -> None:
    assert not adapter.accepts({"input_ids": [1]})
    assert not adapter.accepts(object())


def test_later_changes_to_the_batch_do_not_reach_the_layout(adapter: SGLangAdapter) -> None:
    batch = forward_batch(ForwardMode.EXTEND, PROMPTS)
    layout = read(adapter, batch)
    batch.input_ids.zero_()
    assert layout.token_ids is not None
    assert layout.token_ids.tolist() == [11, 12, 13, 21, 22]


@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=5),
    others=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    rank=st.integers(0, 3),
    padding=st.sampled_from(PaddingMode),
    attn_tp=st.integers(1, 4),
    release=st.sampled_from(RELEASES),
    after=st.booleans(),
)
def test_padding_never_changes_who_the_tokens_are(
    lengths: list[tuple[int, int]],
    others: list[int],
    rank: int,
    padding: PaddingMode,
    attn_tp: int,
    release: str,
    after: bool,
) -> None:
    """Reading a padded batch, inside or after the pass, gives the rows of the unpadded one, then padding."""
    sequences = [
        (f"r{index}", start, [index * 100 + offset for offset in range(count)])
        for index, (start, count) in enumerate(lengths)
    ]
    mode = ForwardMode.EXTEND if sequences else ForwardMode.IDLE
    plain = SGLangAdapter().read_batch(forward_batch(mode, sequences, release))
    own = sum(count for _, count in lengths)
    rank = min(rank, len(others))
    counts = [*others[:rank], own, *others[rank:]]
    batch = forward_batch(mode, sequences, release, is_extend_in_batch=bool(sequences))
    pad_for_data_parallel(batch, list(counts), rank, padding, attn_tp, release)
    if after:
        after_the_pass(batch, release)
    original = sglang_parallel.parallel_axes
    sglang_parallel.parallel_axes = lambda: {"attn_dp": (rank, len(counts))}
    try:
        padded = SGLangAdapter().read_batch(batch)
    finally:
        sglang_parallel.parallel_axes = original
    assert isinstance(plain, TokenLayout)
    assert isinstance(padded, TokenLayout)
    assert padded.sequences == plain.sequences
    assert identities(padded) == identities(plain)
    assert padded.token_ids is not None
    assert plain.token_ids is not None
    assert np.array_equal(padded.token_ids[:own], plain.token_ids)
    gather = padded.data_parallel
    assert gather is not None
    assert gather.rows[rank] == padded.rows
    assert gather.real_rows[rank] == own == padded.real_rows
    assert all(real <= rows for real, rows in zip(gather.real_rows, gather.rows, strict=True))

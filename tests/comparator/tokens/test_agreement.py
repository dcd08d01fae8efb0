"""The search by hashes finds every pair that a comparison token by token finds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.plan.tokens.agreement import Columns, PromptAgreement
from comparator.plan.tokens.episodes import NEVER
from comparator.plan.tokens.pairing import pair_sequences
from comparator.plan.tokens.sequences import SequenceTable

KnownTokens = tuple[tuple[int, ...], int, int, bool]
"""Tokens, first computed position, end of the prompt, whether decode passes follow."""


@st.composite
def known_tokens(draw: st.DrawFn) -> KnownTokens:
    tokens = tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=8)))
    start = draw(st.integers(0, len(tokens) - 1))
    prompt_end = draw(st.integers(start + 1, len(tokens)))
    return tokens, start, prompt_end, prompt_end < len(tokens)


def table_of(sequences: list[KnownTokens]) -> SequenceTable:
    known = [np.where(np.arange(len(tokens)) < start, -1, tokens) for tokens, start, _, _ in sequences]
    end = np.array([len(tokens) for tokens in known], np.int64)
    offsets = np.concatenate([[0], np.cumsum(end)])
    return SequenceTable(
        ids=tuple(str(number) for number in range(len(sequences))),
        start=np.array([start for _, start, _, _ in sequences], np.int64),
        known_from=np.array([start for _, start, _, _ in sequences], np.int64),
        end=end,
        prompt_end=np.array([prompt_end for _, _, prompt_end, _ in sequences], np.int64),
        decodes=np.array([decodes for _, _, _, decodes in sequences], np.bool_),
        unconfirmed=np.full(len(sequences), NEVER, np.int64),
        offsets=offsets,
        token=np.concatenate(known).astype(np.int64),
        encoded=np.zeros(int(offsets[-1]), np.int64),
        computed=np.ones(int(offsets[-1]), np.bool_),
        computed_outside=np.zeros(int(offsets[-1]), np.bool_),
        begun_again=np.zeros(len(known), np.bool_),
        forked=np.zeros(int(offsets[-1]), np.bool_),
        forks=(),
        numbers={},
    )


@settings(max_examples=60, deadline=None)
@given(known_tokens(), st.lists(known_tokens(), min_size=1, max_size=6), st.sampled_from([0.5, 1.0]))
def test_no_agreeing_prompt_is_overlooked(one: KnownTokens, others: list[KnownTokens], share: float) -> None:
    baseline, target = table_of([one]), table_of(others)
    columns = Columns(target, list(range(len(others))))
    agreement = PromptAgreement(baseline, target, columns.numbers, share)
    everything: npt.NDArray[np.int64] = np.arange(len(others))
    parted, agreed = columns.compare(baseline.tokens_of(0), everything)
    expected = {
        number
        for number, (_, start, prompt_end, decodes) in enumerate(others)
        if agreed[number] > 0
        and parted[number] >= np.ceil(min(one[2], prompt_end) * share)
        and not (max(one[1], start) > 0 and decodes and one[3] and abs(prompt_end - one[2]) > 1)
    }
    assert expected <= set(agreement.suitable(0).tolist())


def test_a_prompt_with_a_gap_is_compared_where_it_is_known() -> None:
    """Steps in between were not recorded: tokens are missing inside the prompt."""
    whole, gap = table_of([((1, 2, 3, 4, 5), 0, 5, False)]), table_of([((1, 2, 3, 4, 5), 0, 5, False)])
    gap.token[2] = -1
    assert [(pair.baseline, pair.target, pair.parted) for pair in pair_sequences(whole, gap).pairs] == [(0, 0, NEVER)]

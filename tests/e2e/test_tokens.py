"""The same tokens, computed in another order, in other batches and pieces: ``--token-aligner smart``.

The servers compute in float32: with bfloat16 the last bit decides now and then which expert a token is sent to, and
batches that form by chance would make that a matter of luck.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dumper import open_run
from testbed.comparison import compare
from testbed.layouts import DATA_PARALLEL_ATTENTION, LAYOUTS, TAPS
from testbed.servers import Generated, Recording, sglang_server
from testbed.warm import WarmLauncher

SMART = ("--token-aligner", "smart")
NEW_TOKENS = 5
FLOAT32 = ("--dtype", "float32")
SHARED = tuple(range(100, 124))
"""Tokens that several prompts begin with, so that the radix cache serves them."""
FIRST = ((*SHARED, 7, 8, 9), (*SHARED, 211, 212))
"""Served one after the other before the rest: by one data-parallel rank, and the second finds its beginning cached; or
by both, and then every later prompt with this beginning does."""
CONCURRENT = (
    tuple(range(10, 15)),
    tuple(range(30, 75)),
    (*SHARED, 201, 202),
    tuple(range(60, 72)),
    (*SHARED, *range(90, 97)),
    tuple(range(40, 59)),
)
"""Six prompts of 5 to 45 tokens."""


@dataclass(frozen=True)
class Served:
    run: Path
    answers: tuple[Generated, ...]


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory, warm: WarmLauncher) -> Served:
    """One rank, one request after the other, every prompt prefilled at once, nothing cached."""
    run = tmp_path_factory.mktemp("tokens") / "one-at-a-time"
    recording = Recording(LAYOUTS["tp1"].configs, run)
    with sglang_server("qwen3_moe", FLOAT32, log=run.with_suffix(".log"), recording=recording, warm=warm) as server:
        answers = tuple(server.generate(prompt, new_tokens=NEW_TOKENS) for prompt in (*FIRST, *CONCURRENT))
    return Served(run, answers)


def test_concurrent_chunked_and_cached(one_at_a_time: Served, warm: WarmLauncher, tmp_path: Path) -> None:
    run = tmp_path / "concurrent"
    flags = (*FLOAT32, *DATA_PARALLEL_ATTENTION, "--chunked-prefill-size", "32")
    recording = Recording(LAYOUTS["dp2"].configs, run)
    with sglang_server(
        "qwen3_moe", flags, log=run.with_suffix(".log"), recording=recording, radix_cache=True, warm=warm
    ) as server:
        answers = [server.generate(prompt, new_tokens=NEW_TOKENS) for prompt in FIRST]
        answers += server.generate_all(CONCURRENT, new_tokens=NEW_TOKENS)

    assert [answer.output_ids for answer in answers] == [answer.output_ids for answer in one_at_a_time.answers]
    cached = sum(answer.cached_tokens for answer in answers)
    assert cached > 0, "the radix cache served nothing, so this tests less than it says"
    recorded = open_run(run)
    places = [(step, rank) for step in recorded.steps for rank in recorded.ranks]
    layouts = [layout for step, rank in places if (layout := recorded.layout(step, rank)) is not None]
    prefills = [span for layout in layouts for span in layout.sequences if span.count > 1]
    ends = {(span.id, span.start + span.count) for span in prefills}
    assert any((span.id, span.start) in ends for span in prefills), "no chunks"
    assert any(len(layout.sequences) > 1 for layout in layouts), "no batch of several requests"

    outcome = compare(one_at_a_time.run, run, SMART)
    assert outcome.all_passed, (outcome.summary, outcome.named("failed"), outcome.named("errored"), outcome.messages)
    assert {record["name"] for record in outcome.comparisons} >= TAPS
    computed = sum(len(answer.token_ids) - 1 for answer in one_at_a_time.answers)  # the last one is never an input
    # Logits have a row for the last token of a pass alone.
    for record in [record for record in outcome.comparisons if record["name"] in TAPS]:
        tokens = record["tokens"]
        assert tokens["matched"] == computed - cached
        assert sum(tokens["only_baseline"].values()) == cached
        assert sum(tokens["only_target"].values()) == 0


def test_trees_of_drafts(one_at_a_time: Served, warm: WarmLauncher, tmp_path: Path) -> None:
    """Several tokens are verified for a position; those of the branch that is accepted are compared, all of them."""
    run = tmp_path / "drafts"
    flags = (*FLOAT32, "--tp", "2", "--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "8")
    with sglang_server(
        "qwen3_moe", flags, log=run.with_suffix(".log"), recording=Recording(LAYOUTS["tp2"].configs, run), warm=warm
    ) as server:
        answers = server.generate_all((*FIRST, *CONCURRENT), new_tokens=NEW_TOKENS)
    assert [answer.output_ids for answer in answers] == [answer.output_ids for answer in one_at_a_time.answers]
    recorded = open_run(run)
    layouts = [layout for step in recorded.steps if (layout := recorded.layout(step, 0)) is not None]
    assert any("parents" in layout.extra for layout in layouts), "no trees"

    outcome = compare(one_at_a_time.run, run, SMART)
    assert outcome.all_passed, (outcome.summary, outcome.named("failed"), outcome.named("errored"), outcome.messages)
    computed = sum(len(answer.token_ids) - 1 for answer in answers)
    for record in [record for record in outcome.comparisons if record["name"] in TAPS]:
        assert record["tokens"]["matched"] == computed
        assert not record["tokens"]["only_baseline"]


def test_experts_spread_over_ranks(one_at_a_time: Served, warm: WarmLauncher, tmp_path: Path) -> None:
    """Expert parallelism: a rank adds up its own experts, and the sum over ranks is that of all."""
    run = tmp_path / "experts"
    flags = (*FLOAT32, "--tp", "2", "--ep-size", "2")
    with sglang_server(
        "qwen3_moe", flags, log=run.with_suffix(".log"), recording=Recording(LAYOUTS["tp2"].configs, run), warm=warm
    ) as server:
        server.generate_all((*FIRST, *CONCURRENT), new_tokens=NEW_TOKENS)
    assert open_run(run).headers[1].parallel["moe_ep"] == (1, 2)
    outcome = compare(one_at_a_time.run, run, SMART)
    assert outcome.all_passed, (outcome.summary, outcome.named("failed"), outcome.named("errored"), outcome.messages)
    assert {record["name"] for record in outcome.comparisons} >= TAPS


def test_decoded_here_and_prefilled_there(one_at_a_time: Served, warm: WarmLauncher, tmp_path: Path) -> None:
    """What a server generated token by token is rescored in one pass, as trainers do."""
    run = tmp_path / "rescored"
    recording = Recording(LAYOUTS["tp2"].configs, run)
    with sglang_server(
        "qwen3_moe", (*FLOAT32, "--tp", "2"), log=run.with_suffix(".log"), recording=recording, warm=warm
    ) as server:
        for answer in one_at_a_time.answers:
            server.generate(answer.token_ids[:-1], new_tokens=1)

    outcome = compare(one_at_a_time.run, run, SMART)
    assert outcome.all_passed, (outcome.summary, outcome.named("failed"), outcome.named("errored"), outcome.messages)
    computed = sum(len(answer.token_ids) - 1 for answer in one_at_a_time.answers)
    assert {record["tokens"]["matched"] for record in outcome.comparisons if record["name"] in TAPS} == {computed}

"""Prompts that a run served several times: live traffic against an offline run that has each once."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comparator.plan.tokens import counts_against
from comparator.plan.tokens.interface import TokenPlan
from comparator.plan.tokens.one_sided import NO_SEQUENCE, REPEATED
from testbed.synthetic_engine import Engine, Request, serve
from testbed.synthetic_runs import record
from tests.comparator.tokens.joining import aligner_of, join

END = (90, 91)
"""How every prompt ends, as behind a chat template."""


def prompts_of(rng: random.Random, count: int) -> list[tuple[int, ...]]:
    """Some tokens that all share, and then others; half of them as long as another."""
    shared = tuple(range(10, 10 + rng.choice([0, 0, 3])))
    return [
        (*shared, 20 + number, *(rng.randrange(1, 6) for _ in range(rng.choice([2, 4, 4, 6]))), *END)
        for number in range(count)
    ]


def traffic(rng: random.Random, prompts: list[tuple[int, ...]], most: int) -> list[Request]:
    """Each prompt one to ``most`` times, in any order; its output is always the same."""
    found = [
        Request(f"{number}-{again}", prompt, tuple(random.Random(str(prompt)).randrange(100, 9999) for _ in range(4)))
        for number, prompt in enumerate(prompts)
        for again in range(rng.randint(1, most))
    ]
    rng.shuffle(found)
    return found


def engine_of(rng: random.Random) -> Engine:
    return Engine(max_running=rng.choice([1, 3]), cache_page=rng.choice([None, 1, 2]), chunk=rng.choice([None, 3, 4]))


def says_not_found(plan: TokenPlan) -> bool:
    """Whether each side has sequences that the other has not, which is an error."""
    sides = (("target", plan.only_baseline), ("baseline", plan.only_target))
    return all(NO_SEQUENCE.format(side=other) in only for other, only in sides)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 3))
def test_what_both_have_is_lined_up_however_often_each_served_it(seed: int, most: int) -> None:
    rng = random.Random(seed)
    prompts = prompts_of(rng, 4)
    one, other = traffic(rng, prompts, most), traffic(rng, prompts, 3)
    joined = join(record(serve(one, engine_of(rng))), record(serve(other, engine_of(rng))))
    assert joined.plan.error is None
    assert joined.unequal.size == 0
    assert not says_not_found(joined.plan)
    reasons = [*joined.plan.only_baseline, *joined.plan.only_target]
    assert not any(map(counts_against, reasons))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_requests_that_each_side_lacks_are_still_said_to_be_missing(seed: int) -> None:
    rng = random.Random(seed)
    prompts = prompts_of(rng, 3)
    missing = [Request("x", (70, 71, 72, *END), (1, 2, 3)), Request("y", (80, 81, 82, 83, *END), (4, 5, 6))]
    one, other = [*traffic(rng, prompts, 3), missing[0]], [*traffic(rng, prompts, 3), missing[1]]
    rng.shuffle(one)
    rng.shuffle(other)
    joined = join(record(serve(one, Engine(cache_page=1))), record(serve(other, Engine())))
    assert joined.unequal.size == 0
    assert says_not_found(joined.plan)
    assert joined.plan.only_baseline[NO_SEQUENCE.format(side="target")] == len(missing[0].tokens)
    assert joined.plan.only_target[NO_SEQUENCE.format(side="baseline")] == len(missing[1].tokens)


@pytest.mark.parametrize("cache_page", [None, 1])
def test_repeats_are_counted_and_named(cache_page: int | None) -> None:
    prompt = (1, 2, 3, 4, 5, *END)
    live = [Request(f"live{number}", prompt, (101, 102, 103)) for number in range(3)]
    offline = [Request("offline", prompt, (101, 102, 103))]
    baseline = record(serve(offline, Engine()))
    target = record(serve(live, Engine(max_running=1, cache_page=cache_page)))
    joined = join(baseline, target)
    assert joined.plan.matched == len(offline[0].tokens)
    assert not joined.plan.only_baseline
    computed = len(prompt) + 2 if cache_page is None else 3
    assert joined.plan.only_target == {REPEATED.format(side="baseline"): 2 * computed}
    assert any("2 of 3 sequences of the target repeat a prompt" in note for note in joined.plan.notes)


def test_a_repeat_that_the_cache_hides_is_not_taken_for_another_prompt() -> None:
    """The same length, the same end, and another output: only what was cached tells them apart."""
    one, other = (1, 2, 3, 4, 5, *END), (5, 4, 3, 2, 1, *END)
    baseline = record(serve([Request("a", one, (101, 102)), Request("b", other, (103, 104))], Engine()))
    again = [Request(f"a{number}", one, (101, 102)) for number in range(3)]
    target = record(serve(again, Engine(max_running=1, cache_page=1)))
    joined = join(baseline, target)
    assert joined.unequal.size == 0
    assert joined.plan.only_baseline == {NO_SEQUENCE.format(side="target"): len(other) + 1}
    pairs = aligner_of(baseline, target)._space.pairs  # type: ignore[attr-defined]
    assert [(pair.baseline, pair.target) for pair in pairs.pairs] == [(0, 0)]
    assert pairs.repeats["target"] == {1, 2}
    assert np.asarray(joined.plan.position).tolist() == list(range(len(one) + 1))

"""However two engines serve the same requests, tokens line up; a fault at one token is found at that token."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.synthetic_engine import Engine, Request, Schedule, padded_batches, serve, train_pass, with_ids
from testbed.synthetic_runs import ContextParallel, SyntheticRun, record
from tests.comparator.tokens.joining import join

FORMS = ("own", "gathered", "partial", "scattered", "gathered_scattered")


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    """Requests that may share prefixes or whole prompts; their outputs are a function of the prompt."""
    roots = draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=3))
    requests = []
    for index in range(draw(st.integers(1, 5))):
        prompt = tuple(draw(st.sampled_from(roots)) + draw(st.lists(st.integers(0, 5), max_size=4)))
        length = draw(st.integers(1, 6))
        chance = random.Random(repr(prompt))
        output = tuple(chance.randrange(10) for _ in range(6))[:length]
        requests.append(Request(f"request-{index}", prompt, output))
    return requests


def engines() -> st.SearchStrategy[Engine]:
    return st.builds(
        Engine,
        data_parallel=st.sampled_from([1, 1, 2, 3]),
        attention_tensor_parallel=st.sampled_from([1, 2]),
        padding=st.sampled_from(["max_len", "sum_len"]),
        chunk=st.sampled_from([None, 2, 3, 5]),
        max_running=st.integers(1, 4),
        mixed=st.booleans(),
        mixed_mode=st.sampled_from(["mixed", "extend"]),
        cache_page=st.sampled_from([None, None, 1, 2]),
        retract_at=st.frozensets(st.integers(1, 12), max_size=3),
        loses_sampled=st.booleans(),
        drafts=st.sampled_from([0, 0, 2]),
        branches=st.sampled_from([1, 1, 2, 3]),
        tells_branches=st.booleans(),
        idle_dummy_row=st.booleans(),
        pad_to=st.sampled_from([1, 1, 4]),
        seed=st.integers(0, 1000),
    )


@st.composite
def schedules(draw: st.DrawFn, requests: list[Request]) -> Schedule:
    shuffled = with_ids(draw(st.permutations(requests)), draw(st.sampled_from(["a", "b"])))
    kind = draw(st.sampled_from(["engine", "engine", "engine", "left", "right", "train"]))
    if kind == "engine":
        return serve(shuffled, draw(engines()))
    if kind == "train":
        return train_pass(shuffled, pad_to=draw(st.sampled_from([1, 4])))
    return padded_batches(shuffled, batch=draw(st.integers(1, 3)), side=kind)


def forms_of(run: SyntheticRun) -> st.SearchStrategy[str]:
    return st.sampled_from([form for form in FORMS if form in run.tensors])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Request], SyntheticRun, str, SyntheticRun, str]:
    requests = draw(request_lists())
    baseline, target = record(draw(schedules(requests))), record(draw(schedules(requests)))
    return requests, baseline, draw(forms_of(baseline)), target, draw(forms_of(target))


@settings(max_examples=40, deadline=None)
@given(pairs())
def test_every_layout_of_the_same_requests_joins_equal_values(
    pair: tuple[list[Request], SyntheticRun, str, SyntheticRun, str],
) -> None:
    _, baseline, baseline_form, target, target_form = pair
    joined = join(baseline, target, baseline_form=baseline_form, target_form=target_form)
    assert joined.plan.error is None
    assert joined.plan.matched > 0
    assert joined.unequal.size == 0


@settings(max_examples=40, deadline=None)
@given(pairs(), st.randoms(use_true_random=False))
def test_a_fault_is_found_at_its_token_and_nowhere_else(
    pair: tuple[list[Request], SyntheticRun, str, SyntheticRun, str], chance: random.Random
) -> None:
    _, baseline, baseline_form, target, _ = pair
    clean = join(baseline, target, baseline_form=baseline_form)
    at = chance.randrange(clean.plan.matched)
    step, rank, row = clean.target_row_of(at)
    faulty = join(baseline, target.with_fault("own", step, rank, row), baseline_form=baseline_form)
    assert faulty.unequal.tolist() == [at]


@settings(max_examples=40, deadline=None)
@given(request_lists(), st.data())
def test_without_a_cache_every_token_is_matched_and_nothing_is_left_over(
    requests: list[Request], data: st.DataObject
) -> None:
    unlike = [
        request
        for index, request in enumerate(requests)
        if request.prompt not in [other.prompt for other in requests[:index]]
    ]
    # A one-token chunk in a mixed pass looks like a decode, so that what was retracted before it looks like a
    # request of its own; mixed passes therefore go without retraction here.
    engine = dataclasses.replace(data.draw(engines()), cache_page=None, drafts=0, mixed=False)
    other = dataclasses.replace(data.draw(engines()), cache_page=None, drafts=0, retract_at=frozenset())
    baseline = record(serve(unlike, engine))
    target = record(serve(with_ids(data.draw(st.permutations(unlike)), "other"), other))
    joined = join(baseline, target)
    assert joined.plan.matched == sum(len(request.tokens) for request in unlike)
    assert not joined.plan.only_baseline
    assert not joined.plan.only_target


@settings(max_examples=40, deadline=None)
@given(
    request_lists(),
    st.integers(1, 4),
    st.sampled_from(["zigzag", "natural", "interleave"]),
    st.booleans(),
    st.sampled_from(["engine", "left", "right", "train"]),
)
def test_context_parallel_rows_join_in_every_order(
    requests: list[Request], size: int, ordering: str, local: bool, kind: str
) -> None:
    context = ContextParallel(size, ordering, local)
    if kind == "engine":
        schedule = serve(requests, Engine(chunk=5))
    elif kind == "train":
        schedule = train_pass(requests)
    else:
        schedule = padded_batches(requests, batch=2, side=kind)
    if ordering == "interleave" and kind in {"left", "right"}:
        return  # deals the rows of a packed pass; padded batches are not dealt
    whole, split = record(schedule), record(schedule, context=context)
    split_axes = ("attn_cp",) if size > 1 else ()
    joined = join(split, whole, split_axes=split_axes)
    assert joined.plan.error is None
    assert joined.plan.matched == sum(
        int((found.layout.row_identities()[0] >= 0).sum()) for passes in schedule.passes for found in passes
    )
    assert np.array_equal(joined.baseline, joined.target)

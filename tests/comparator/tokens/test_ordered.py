"""``concat_steps`` and the comparison step by step."""

from __future__ import annotations

import dataclasses

import pytest

from comparator.plan.tokens import counts_against
from testbed.synthetic_engine import Engine, Request, serve
from testbed.synthetic_runs import ContextParallel, SyntheticRun, record
from tests.comparator.tokens.joining import join

ONE = Request("one", (11, 12, 13, 14, 15), (21, 22, 23, 24))
FORMS = ("own", "gathered", "partial", "scattered", "gathered_scattered")


def data_parallel(*, empty: int, padding: str, tensor: int = 1, idle_prefill_row: bool = False) -> SyntheticRun:
    """One request on two data-parallel ranks; rank ``empty`` has none."""
    for seed in range(20):
        engine = Engine(
            data_parallel=2,
            attention_tensor_parallel=tensor,
            padding=padding,
            idle_prefill_row=idle_prefill_row,
            seed=seed,
        )
        schedule = serve([ONE], engine)
        if not schedule.passes[0][empty].layout.sequences:
            return record(schedule)
    raise AssertionError("no seed puts the request on that rank")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("padding", ["max_len", "sum_len"])
@pytest.mark.parametrize("empty", [0, 1])
def test_idle_ranks_and_their_dummy_rows_do_not_count(empty: int, padding: str, tensor: int, form: str) -> None:
    baseline = record(serve([ONE], Engine(attention_tensor_parallel=2)))
    target = data_parallel(empty=empty, padding=padding, tensor=tensor)
    joined = join(baseline, target, "concat_steps", target_form=form)
    assert joined.plan.matched == len(ONE.tokens)
    assert joined.unequal.size == 0
    assert not joined.plan.only_baseline
    assert not joined.plan.only_target
    assert joined.plan.dropped_target > 0


@pytest.mark.parametrize("empty", [0, 1])
def test_six_rows_against_five(empty: int) -> None:
    """A rank without tokens brings one row of padding to the gathered prefill, back to back."""
    baseline = record(serve([ONE], Engine()))
    target = data_parallel(empty=empty, padding="sum_len", idle_prefill_row=True)
    assert len(target.tensors["gathered"][0, 0]) == 6
    assert len(baseline.tensors["own"][0, 0]) == 5
    joined = join(baseline, target, "concat_steps", target_form="gathered")
    assert joined.plan.matched == len(ONE.tokens)
    assert joined.unequal.size == 0
    assert not joined.plan.only_baseline


def test_a_fault_behind_an_idle_rank_is_found_at_its_token() -> None:
    baseline = record(serve([ONE], Engine()))
    target = data_parallel(empty=0, padding="max_len").with_fault("own", 2, 1, 0)
    assert join(baseline, target, "concat_steps").unequal.tolist() == [6]


def test_the_longer_side_is_cut_and_counted() -> None:
    shorter = dataclasses.replace(ONE, output=ONE.output[:2])
    joined = join(record(serve([ONE], Engine())), record(serve([shorter], Engine())), "concat_steps")
    assert joined.plan.matched == 6
    assert joined.unequal.size == 0
    assert joined.plan.only_baseline == {"cut to the shorter side (target)": 2}


def test_chunks_make_no_difference_to_one_request() -> None:
    joined = join(record(serve([ONE], Engine())), record(serve([ONE], Engine(chunk=2))), "concat_steps")
    assert joined.plan.matched == len(ONE.tokens)
    assert joined.unequal.size == 0


@pytest.mark.parametrize("ordering", ["zigzag", "natural", "interleave"])
def test_context_parallel_parts_come_back_in_order(ordering: str) -> None:
    schedule = serve([ONE], Engine())
    split = record(schedule, context=ContextParallel(2, ordering, local=True))
    joined = join(record(schedule), split, "concat_steps")
    assert joined.plan.matched == len(ONE.tokens)
    assert joined.unequal.size == 0


def test_a_layout_without_the_padding_of_its_share() -> None:
    """The layout of an idle rank has no rows, and the gathered buffer has one for it."""
    target = data_parallel(empty=0, padding="sum_len", idle_prefill_row=True)
    layouts = {
        key: dataclasses.replace(layout, rows=0, token_ids=None) if key[1] == 0 else layout
        for key, layout in target.layouts.items()
    }
    target = dataclasses.replace(target, layouts=layouts)
    joined = join(record(serve([ONE], Engine())), target, "concat_steps", target_form="gathered")
    assert joined.plan.matched == len(ONE.tokens)
    assert joined.unequal.size == 0
    own = join(record(serve([ONE], Engine())), target, "concat_steps")
    assert own.plan.matched == len(ONE.tokens)


def test_several_requests_get_a_note_and_other_tokens_are_noticed() -> None:
    two = Request("two", (31, 32, 33), (41, 42))
    joined = join(record(serve([ONE, two], Engine())), record(serve([two, ONE], Engine())), "concat_steps")
    assert any("--token-aligner smart" in note for note in joined.plan.notes)
    assert "token ids differ from joined token 0 on" in joined.plan.other_tokens[0]


def test_without_layouts_rows_are_taken_as_they_are_and_cut() -> None:
    run = dataclasses.replace(record(serve([ONE], Engine())), layouts={})
    shorter = dataclasses.replace(record(serve([dataclasses.replace(ONE, output=(21,))], Engine())), layouts={})
    joined = join(run, shorter, "concat_steps")
    assert joined.plan.matched == 5
    assert joined.unequal.size == 0
    assert any("as they are" in note for note in joined.plan.notes)


@pytest.mark.parametrize("form", FORMS)
def test_step_by_step_padding_is_dropped(form: str) -> None:
    baseline, target = record(serve([ONE], Engine())), data_parallel(empty=0, padding="max_len", tensor=2)
    for step in baseline.steps:
        joined = join(_only(baseline, step), _only(target, step), "per_step", target_form=form)
        assert joined.plan.error is None
        assert joined.plan.matched == len(baseline.tensors["own"][step, 0])
        assert joined.unequal.size == 0


def test_step_by_step_equal_rows_are_not_copied() -> None:
    run = record(serve([ONE], Engine()))
    joined = join(_only(run, 0), _only(run, 0), "per_step")
    assert joined.plan.baseline is None
    assert joined.plan.target is None


def test_step_by_step_missing_tokens_are_counted_as_a_gap() -> None:
    chunked = record(serve([ONE], Engine(chunk=3)))
    joined = join(_only(record(serve([ONE], Engine())), 0), _only(chunked, 0), "per_step")
    assert joined.plan.matched == 3
    assert joined.plan.only_baseline == {"target has fewer tokens in this step": 2}
    assert all(counts_against(reason) for reason in joined.plan.only_baseline)


def test_a_side_with_padding_alone_is_an_error() -> None:
    baseline = record(serve([ONE], Engine()))
    target = data_parallel(empty=1, padding="max_len").without_ranks(0)
    joined = join(baseline, target, "concat_steps")
    assert joined.plan.error is not None
    assert "the target none but padding" in joined.plan.error


def _only(run: SyntheticRun, step: int) -> SyntheticRun:
    """The run with the tensors of one step; its layouts stay."""
    tensors = {
        form: {key: values for key, values in found.items() if key[0] == step} for form, found in run.tensors.items()
    }
    return dataclasses.replace(run, tensors=tensors)

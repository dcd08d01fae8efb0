"""``smart``: every reason for which two runs of the same requests have tokens in different places."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from comparator.plan.tokens import TokenPart, counts_against
from comparator.plan.tokens.episodes import Episode
from dumper.layout import SequenceSpan, TokenLayout
from testbed.synthetic_engine import Engine, Request, padded_batches, serve, train_pass
from testbed.synthetic_runs import SyntheticRun, record
from tests.comparator.tokens.joining import Joined, aligner_of, join

ONE = Request("one", (11, 12, 13, 14, 15), (21, 22, 23, 24))
TWO = Request("two", (31, 32, 33), (41, 42))
THREE = Request("three", (51, 52, 53, 54, 55, 56, 57), (61, 62, 63))
ALL = [ONE, TWO, THREE]


def tokens_of(requests: list[Request]) -> int:
    return sum(len(request.tokens) for request in requests)


def renamed(request: Request, id: str) -> Request:
    return dataclasses.replace(request, id=id)


def check_all_matched(joined: Joined, expected: int) -> None:
    assert joined.plan.error is None
    assert joined.plan.matched == expected
    assert joined.unequal.size == 0
    assert not joined.plan.only_baseline
    assert not joined.plan.only_target


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(Engine(max_running=1), id="one at a time"),
        pytest.param(Engine(chunk=2), id="chunked prefill"),
        pytest.param(Engine(chunk=3, mixed=True), id="prefill and decode in one pass"),
        pytest.param(Engine(retract_at=frozenset({2, 4})), id="retracted and recomputed"),
        pytest.param(Engine(data_parallel=2, padding="max_len", seed=3), id="data parallel, padded to the longest"),
        pytest.param(Engine(data_parallel=3, padding="sum_len", seed=1), id="data parallel, back to back"),
        pytest.param(Engine(drafts=2, seed=5), id="speculative verification"),
        pytest.param(Engine(pad_to=8), id="padded batches"),
    ],
)
def test_requests_in_another_order_served_in_another_way(engine: Engine) -> None:
    baseline = record(serve(ALL, Engine(max_running=2)))
    target = record(serve([renamed(request, request.id + "'") for request in (THREE, ONE, TWO)], engine))
    joined = join(baseline, target)
    assert joined.plan.matched == tokens_of(ALL)
    assert joined.unequal.size == 0
    assert not joined.plan.only_baseline
    if not engine.drafts:
        assert not joined.plan.only_target


def test_joined_rows_are_named_by_sequence_and_position() -> None:
    joined = join(record(serve([ONE, TWO], Engine())), record(serve([TWO, ONE], Engine())))
    assert joined.plan.describe_row(0) == "sequence 0, position 0"
    assert joined.plan.describe_row(len(ONE.tokens)) == "sequence 1, position 0"


def test_a_cached_prefix_is_missing_there_and_counted() -> None:
    longer = Request("longer", (*ONE.prompt, 71, 72), (81, 82))
    baseline = record(serve([ONE, longer], Engine(max_running=1)))
    target = record(serve([ONE, longer], Engine(max_running=1, cache_page=2)))
    joined = join(baseline, target)
    assert joined.unequal.size == 0
    assert joined.plan.only_baseline == {"cached prefix in target": 4}
    assert joined.plan.matched == tokens_of([ONE, longer]) - 4
    assert not any(counts_against(reason) for reason in joined.plan.only_baseline)
    back = join(target, baseline)
    assert back.plan.only_target == {"cached prefix in baseline": 4}


def test_a_prefix_that_neither_side_computed_for_this_request() -> None:
    system = (1, 2, 3, 4, 5, 6, 7, 8)
    first, second = Request("first", (*system, 9), (10, 11)), Request("second", (*system, 12, 13), (14, 15, 16))
    baseline = record(serve([first, second], Engine(max_running=1, cache_page=4)))
    target = record(serve([first, second], Engine(max_running=1, cache_page=1)))
    joined = join(baseline, target)
    assert joined.unequal.size == 0
    assert joined.plan.matched == len(first.tokens) + len(second.tokens) - 8
    assert not joined.plan.only_baseline
    assert not joined.plan.only_target


def test_identical_prompts_are_paired_in_order_of_arrival() -> None:
    twins = [renamed(ONE, "first"), renamed(ONE, "second"), renamed(ONE, "third")]
    baseline = record(serve(twins, Engine(max_running=1)))
    target = record(serve(twins, Engine(max_running=3)))
    joined = join(baseline, target)
    check_all_matched(joined, 3 * len(ONE.tokens))
    assert any("3 sequences have the prompt of another one" in note for note in joined.plan.notes)
    rows = [joined.target_row_of(row)[2] for row in (0, len(ONE.tokens), 2 * len(ONE.tokens))]
    assert rows == [0, 5, 10]


def test_identical_prompts_with_other_outputs_are_paired_by_their_outputs() -> None:
    one, other = Request("one", (1, 2, 3), (4, 5, 6, 7)), Request("other", (1, 2, 3), (4, 8, 9, 9))
    joined = join(record(serve([one, other], Engine())), record(serve([other, one], Engine())))
    check_all_matched(joined, 12)


def test_outputs_that_part_are_compared_up_to_there() -> None:
    parted = dataclasses.replace(ONE, output=(21, 99, 98, 97))
    joined = join(record(serve([ONE], Engine())), record(serve([parted], Engine())))
    # Token 22 at position 6 is an input of the pass after it: rows 0 to 5 saw the same tokens.
    assert joined.plan.matched == 6
    assert joined.unequal.size == 0
    assert joined.plan.only_baseline == {"after the token ids part": 2}
    assert joined.plan.only_target == {"after the token ids part": 2}
    (note,) = joined.plan.notes
    assert "outputs part at position 6, token 22 in the baseline and 99 in the target" in note
    assert not counts_against("after the token ids part")


def test_many_sequences_that_part_are_not_all_named() -> None:
    requests = [Request(f"r{index}", (index, 2, 3), (4, 5, 6)) for index in range(30)]
    parted = [dataclasses.replace(request, output=(4, 9, 6)) for request in requests]
    joined = join(record(serve(requests, Engine())), record(serve(parted, Engine())))
    assert len(joined.plan.notes) == 21
    assert "10 further sequences part" in joined.plan.notes


def test_the_side_that_ended_earlier_is_named() -> None:
    shorter = dataclasses.replace(ONE, output=(21, 22))
    joined = join(record(serve([ONE], Engine())), record(serve([shorter], Engine())))
    assert joined.plan.matched == 6
    assert joined.plan.only_baseline == {"sequence ended earlier in target": 2}


def test_a_request_that_only_one_side_served() -> None:
    joined = join(record(serve([ONE, TWO], Engine())), record(serve([ONE], Engine())))
    assert joined.plan.matched == len(ONE.tokens)
    assert joined.plan.only_baseline == {"no such sequence in target": len(TWO.tokens)}
    assert any("1 of 2 sequences are only in the baseline: two" in note for note in joined.plan.notes)


def test_runs_with_nothing_in_common_say_so() -> None:
    joined = join(record(serve([ONE], Engine())), record(serve([TWO], Engine())))
    assert joined.plan.matched == 0
    assert joined.plan.error is not None
    assert "no token is on both sides" in joined.plan.error
    assert "no such sequence in target" in joined.plan.error


def test_decoded_on_one_side_and_prefilled_at_once_on_the_other() -> None:
    generated = record(serve(ALL, Engine(data_parallel=2, seed=2)))
    rescored = record(train_pass([THREE, ONE, TWO], pad_to=4))
    check_all_matched(join(generated, rescored, baseline_form="gathered"), tokens_of(ALL))
    check_all_matched(join(rescored, generated), tokens_of(ALL))
    whole = [Request(f"again-{request.id}", request.tokens) for request in ALL]
    check_all_matched(join(generated, record(serve(whole, Engine(chunk=4)))), tokens_of(ALL))


def test_request_ids_that_are_used_again() -> None:
    same_id = [renamed(request, "request") for request in ALL]
    baseline = record(serve(same_id, Engine(max_running=1)))
    check_all_matched(join(baseline, record(serve(ALL, Engine()))), tokens_of(ALL))
    assert len(aligner_of(baseline, baseline)._space.baseline) == 3  # type: ignore[attr-defined]


def test_the_same_prompt_under_the_same_id_again_is_another_request() -> None:
    twice = [renamed(ONE, "request"), renamed(ONE, "request")]
    baseline = record(serve(twice, Engine(max_running=1)))
    target = record(serve([renamed(ONE, "a"), renamed(ONE, "b")], Engine()))
    check_all_matched(join(baseline, target), 2 * len(ONE.tokens))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_join_flat_ones(side: str) -> None:
    batches = record(padded_batches(ALL, batch=2, side=side))
    joined = join(record(serve(ALL, Engine())), batches)
    check_all_matched(joined, tokens_of(ALL))
    assert joined.plan.dropped_target > 0


def test_the_last_computation_of_a_retracted_request_counts() -> None:
    """The first computation is made wrong: nobody notices. The second one is: it is found."""
    clean = record(serve([ONE], Engine()))
    retracted = record(serve([ONE], Engine(retract_at=frozenset({2}))))
    starts = [step for step in retracted.steps if retracted.layouts[step, 0].sequences[0].start == 0]
    assert len(starts) == 2, "the request is prefilled twice"
    assert join(clean, retracted.with_fault("own", starts[0], 0, 1)).unequal.size == 0
    assert join(clean, retracted.with_fault("own", starts[1], 0, 1)).unequal.tolist() == [1]


@pytest.mark.parametrize("mode", ["mixed", "extend"])
def test_behind_a_cached_prefix_and_decoded_while_others_are_prefilled(mode: str) -> None:
    """However its passes are called, its prompt ends where decoding begins: its length tells it from others."""
    system = (1, 2, 3, 4, 5, 6, 7, 8)
    first, second = Request("first", (*system, 9), (10,)), Request("second", (*system, 12), (14, 15, 16, 17, 18))
    filler, long = Request("filler", (31,), (41, 42)), Request("long", (60, 61, 62, 63, 64, 65), (66, 67, 68))
    requests = [first, filler, second, long]
    target = record(serve(requests, Engine(mixed=True, mixed_mode=mode, cache_page=4, chunk=2, max_running=2)))
    passes = [layout for layout in target.layouts.values() if "second" in {span.id for span in layout.sequences}]
    assert [layout.forward_mode for layout in passes[1:]] == [mode, mode, mode, "decode"]
    joined = join(record(serve(requests, Engine(max_running=1))), target)
    assert joined.unequal.size == 0
    assert joined.plan.only_baseline == {"cached prefix in target": 8}
    assert not joined.plan.only_target


def test_a_prompt_in_single_tokens_ends_where_it_does() -> None:
    """Chunks of one token beside the decoding of others look like decoding, until a longer chunk follows."""
    layouts = [(0, 3), (3, 1), (4, 1), (5, 4), (9, 1), (10, 1)]
    episode = Episode.begin(SequenceSpan("one", 0, 3), "extend")
    for start, count in layouts[1:]:
        assert episode.continues_with(SequenceSpan("one", start, count), "extend")
        episode.add(SequenceSpan("one", start, count), "extend")
    assert (episode.prefill_end, episode.decodes) == (9, True)


@pytest.mark.parametrize("twice", ["baseline", "target", "both"])
def test_retracted_before_the_first_output_was_known(twice: str) -> None:
    """The prompt is prefilled twice from the start, of other requests on each side: none of them is missing there."""
    requests = [ONE, TWO, THREE]
    other = [renamed(request, request.id + "'") for request in (THREE, TWO, ONE)]
    again = Engine(retract_at=frozenset({1}), loses_sampled=True)
    baseline = record(serve(requests, Engine() if twice == "target" else again))
    target = record(serve(other, Engine() if twice == "baseline" else again))
    joined = join(baseline, target)
    check_all_matched(joined, tokens_of(ALL))
    assert not joined.plan.notes


def test_rejected_drafts_are_no_tokens_of_the_sequence() -> None:
    verified = record(serve([THREE, ONE], Engine(drafts=3, seed=4)))
    joined = join(record(serve([ONE, THREE], Engine())), verified)
    assert joined.plan.matched == tokens_of([ONE, THREE])
    assert joined.unequal.size == 0
    assert set(joined.plan.only_target) <= {"sequence ended earlier in baseline"}
    assert not joined.plan.notes


def test_a_draft_is_not_taken_for_the_token_that_replaced_it() -> None:
    """The pass that computed the right token was not recorded; the rejected draft before it is no substitute."""
    request = Request("long", (1, 2, 3), tuple(range(20, 40)))
    verified = record(serve([request], Engine(drafts=3, seed=4)))
    starts = [verified.layouts[step, 0].sequences[0].start for step in verified.steps]
    rejected = [step for step in verified.steps[1:-1] if starts[step] + 4 > starts[step + 1]]
    kept = {key: values for key, values in verified.tensors["own"].items() if key[0] != rejected[0] + 1}
    joined = join(record(serve([request], Engine())), dataclasses.replace(verified, tensors={"own": kept}))
    assert joined.plan.only_baseline["not recorded in target"] > 0
    assert joined.unequal.size == 0


def test_drafts_that_nothing_confirmed_are_no_parting_of_the_outputs() -> None:
    shorter = dataclasses.replace(ONE, output=ONE.output[:2])
    joined = join(record(serve([ONE], Engine())), record(serve([shorter], Engine(drafts=3))))
    assert joined.plan.matched == 6
    assert not joined.plan.notes
    assert "drafted and not confirmed" in joined.plan.only_target


TREES = Engine(drafts=3, branches=3)


@pytest.mark.parametrize("seed", range(6))
def test_the_branch_that_was_accepted_is_compared(seed: int) -> None:
    """Several drafts of a position, on branches of which one counts; the same token may be on several."""
    verified = record(serve([THREE, ONE, TWO], dataclasses.replace(TREES, seed=seed)))
    for joined in (
        join(record(serve(ALL, Engine())), verified),
        join(record(serve(ALL, Engine(max_running=1))), verified, target_form="partial"),
        join(verified, record(serve(ALL, Engine()))),
    ):
        assert joined.plan.matched == tokens_of(ALL)
        assert joined.unequal.size == 0
        assert {*joined.plan.only_baseline, *joined.plan.only_target} <= {
            "sequence ended earlier in baseline",
            "sequence ended earlier in target",
        }


@pytest.mark.parametrize("seed", range(6))
def test_where_branches_are_not_told_drafts_that_compete_are_left_out(seed: int) -> None:
    verified = record(serve([THREE, ONE, TWO], dataclasses.replace(TREES, seed=seed, tells_branches=False)))
    joined = join(record(serve(ALL, Engine())), verified)
    assert joined.unequal.size == 0
    assert joined.plan.matched + sum(joined.plan.only_baseline.values()) == tokens_of(ALL)
    assert {counts_against(reason) for reason in joined.plan.only_baseline} <= {False}


@pytest.mark.parametrize("parents", ["none", [[]] * 99, [0] * 99, [-1] * 99, list(range(99)), [2.5] * 99, [1]])
def test_branches_that_make_no_sense_are_not_told(parents: object) -> None:
    verified = record(serve([THREE, ONE, TWO], dataclasses.replace(TREES, seed=1)))
    layouts = {
        at: dataclasses.replace(layout, extra={"parents": parents} if layout.extra else {})
        for at, layout in verified.layouts.items()
    }
    joined = join(record(serve(ALL, Engine())), dataclasses.replace(verified, layouts=layouts))
    assert joined.unequal.size == 0
    assert joined.plan.only_baseline


def test_of_two_runs_with_trees_no_wrong_branch_is_compared() -> None:
    verified = [record(serve(ALL, dataclasses.replace(TREES, seed=seed))) for seed in range(4)]
    for one in verified:
        for other in verified:
            joined = join(one, other)
            assert joined.unequal.size == 0
            assert joined.plan.matched > tokens_of(ALL) / 2
            assert {counts_against(reason) for reason in joined.plan.only_baseline} <= {False}


def test_an_accepted_draft_that_is_another_token_parts_the_texts() -> None:
    """The tokens behind it are the same again, and are not compared: they stand behind another text."""
    text = (21, 22, 23, 24, 25, 26, 27, 28)
    one = dataclasses.replace(ONE, output=text)
    for at, seed in ((1, 0), (2, 1), (3, 2), (4, 3)):
        other = dataclasses.replace(ONE, output=(*text[:at], 99, *text[at + 1 :]))
        verified = record(serve([other], dataclasses.replace(TREES, seed=seed)))
        joined = join(record(serve([one], Engine())), verified)
        assert joined.plan.matched == len(ONE.prompt) + at
        assert joined.unequal.size == 0


def test_passes_of_a_draft_model_belong_to_no_sequence() -> None:
    """They see the same requests at the same positions, with token ids shifted by one, between the target's passes."""
    clean = record(serve([ONE], Engine()))
    prefill = clean.layouts[0, 0]
    assert prefill.token_ids is not None
    draft = dataclasses.replace(prefill, forward_mode="draft_extend", token_ids=np.roll(prefill.token_ids, -1))
    moved = {step: step + (step > 0) for step in clean.steps}
    layouts = {(moved[step], rank): layout for (step, rank), layout in clean.layouts.items()}
    own = {(moved[step], rank): values for (step, rank), values in clean.tensors["own"].items()}
    drafting = dataclasses.replace(
        clean, steps=(*clean.steps, len(clean.steps)), layouts={**layouts, (1, 0): draft}, tensors={"own": own}
    )
    check_all_matched(join(clean, drafting), len(ONE.tokens))


def test_prompts_that_share_little_are_not_paired() -> None:
    one, other = Request("one", (1, 2, 3, 4, 5, 6), (7,)), Request("other", (1, 2, 9, 9, 9, 9), (7,))
    joined = join(record(serve([one], Engine())), record(serve([other], Engine())))
    assert joined.plan.only_baseline == {"no such sequence in target": 6}


def test_prompts_that_part_late_are_compared_up_to_there() -> None:
    one, other = Request("one", (1, 2, 3, 4, 5, 6), (7, 8)), Request("other", (1, 2, 3, 4, 9, 6), (7, 8))
    joined = join(record(serve([one], Engine())), record(serve([other], Engine())))
    assert joined.plan.matched == 4
    assert joined.unequal.size == 0
    assert "prompts part at position 4" in joined.plan.notes[0]


def test_identical_prompts_of_unequal_length_are_paired_in_order_of_arrival() -> None:
    shorter = dataclasses.replace(ONE, output=ONE.output[:3])
    baseline = record(serve([renamed(ONE, "a"), renamed(ONE, "b")], Engine(max_running=1)))
    target = record(serve([renamed(shorter, "c"), renamed(shorter, "d")], Engine(max_running=1)))
    joined = join(baseline, target)
    assert joined.plan.matched == 2 * len(shorter.tokens)
    assert [joined.target_row_of(row)[0] for row in (0, len(shorter.tokens))] == [0, 3]


def test_what_a_cached_prefix_hides_is_not_guessed() -> None:
    """Both prompts end alike, and on one side nothing else of them was computed; their lengths tell them apart."""
    short = Request("short", (1, 2, 3, 99), (5, 6, 7))
    long = Request("long", (4, 3, 2, 99, 8, 9, 10, 99), (15, 16, 17))
    warm = [Request("w1", short.prompt, (1,)), Request("w2", long.prompt, (1,))]
    baseline = record(serve([long], Engine()))
    cached = record(serve([*warm, short], Engine(max_running=1, cache_page=1)))
    assert cached.layouts[2, 0].sequences[0].start == 3
    joined = join(baseline, cached)
    assert joined.unequal.size == 0
    assert joined.plan.only_target["no such sequence in baseline"] >= len(short.prompt)


def test_an_id_used_again_by_a_request_of_about_that_length() -> None:
    other = Request("one", (90, 91, 92, 93, 94, 95, 96, 97, 98), (21, 22))
    baseline = record(serve([ONE, other], Engine(max_running=1)))
    target = record(serve([renamed(other, "b"), renamed(ONE, "a")], Engine()))
    check_all_matched(join(baseline, target), tokens_of([ONE, other]))


def test_rows_of_padded_batches_are_used_again_by_longer_prompts() -> None:
    prompts = [Request("p", (1, 2, 3), (9,)), Request("q", (1, 2, 3, 4), (9,))]
    batches = record(padded_batches(prompts, batch=1, side="left"))
    check_all_matched(join(record(serve(prompts, Engine())), batches), 7)


def test_rows_of_a_rank_whose_layout_is_missing_are_counted() -> None:
    run = record(serve(ALL, Engine(data_parallel=2, seed=3, padding="sum_len")))
    served = [rank for rank in run.ranks if run.layouts[0, rank].sequences]
    assert len(served) == 2
    layouts = {key: layout for key, layout in run.layouts.items() if key[1] != 1}
    missing = dataclasses.replace(run, layouts=layouts).without_ranks(1)
    joined = join(record(serve(ALL, Engine())), missing, target_form="gathered")
    assert joined.plan.only_target["no token layout in target says which tokens they are"] > 0
    assert any(counts_against(reason) for reason in joined.plan.only_target)
    assert joined.unequal.size == 0
    assert joined.plan.matched > 0


def test_a_tensor_that_was_not_recorded_everywhere_is_a_gap() -> None:
    baseline, target = record(serve([ONE], Engine())), record(serve([ONE], Engine()))
    kept = {key: values for key, values in target.tensors["own"].items() if key[0] != 2}
    gap = dataclasses.replace(target, tensors={"own": kept})
    joined = join(baseline, gap)
    assert joined.plan.only_baseline == {"not recorded in target": 1}
    assert counts_against("not recorded in target")
    assert joined.unequal.size == 0


def test_tokens_of_steps_that_are_not_compared_are_no_gap() -> None:
    baseline, target = record(serve([ONE], Engine())), record(serve([ONE], Engine(chunk=3)))
    joined = join(baseline, target, steps=(0, 1))
    assert joined.unequal.size == 0
    assert joined.plan.matched == 5
    assert joined.plan.only_baseline == {"computed in steps of target that are not compared": 1}


def test_one_row_per_sequence_is_the_last_token_of_each() -> None:
    baseline = record(serve(ALL, Engine(max_running=1)))
    target = record(serve(ALL, Engine(data_parallel=2, seed=1, padding="sum_len", idle_dummy_row=False)))
    joined = join(baseline, target, baseline_form="last", target_form="last")
    assert joined.plan.error is None
    assert joined.unequal.size == 0
    assert joined.plan.matched == sum(len(request.output) for request in ALL)


def test_without_token_ids_sequences_are_paired_by_id_then_by_arrival() -> None:
    def anonymous(run: SyntheticRun) -> SyntheticRun:
        layouts = {key: dataclasses.replace(layout, token_ids=None) for key, layout in run.layouts.items()}
        return dataclasses.replace(run, layouts=layouts)

    joined = join(anonymous(record(serve([ONE, TWO], Engine()))), anonymous(record(serve([TWO, ONE], Engine()))))
    check_all_matched(joined, tokens_of([ONE, TWO]))
    assert any("token ids were not recorded" in note for note in joined.plan.notes)


def test_parts_without_layouts_are_an_error_that_says_what_to_do() -> None:
    run = record(serve([ONE], Engine()))
    bare = dataclasses.replace(run, layouts={})
    joined = join(bare, run)
    assert joined.plan.error is not None
    assert "record token layouts" in joined.plan.error


def test_a_layout_that_contradicts_itself_is_not_used_and_its_rows_are_a_gap() -> None:
    run = record(serve([ONE], Engine()))
    broken = {**run.layouts, (0, 0): dataclasses.replace(run.layouts[0, 0], rows=2, token_ids=None)}
    joined = join(dataclasses.replace(run, layouts=broken), run)
    assert joined.plan.matched == 3
    assert joined.plan.only_baseline == {"no token layout in baseline says which tokens they are": 5}
    (note,) = joined.plan.notes
    assert note.startswith("baseline: the token layout of rank 0 in step 0 is not used: the sequences hold 5 tokens")


def test_a_million_tokens_are_joined_without_a_loop_per_token() -> None:
    """256 sequences of 4096 tokens, in another order: what is called does not grow with their length."""
    tokens = np.random.default_rng(0).integers(0, 50_000, (256, 4096))

    def run(order: np.ndarray) -> SyntheticRun:
        layouts = {
            (step, 0): TokenLayout("extend", (SequenceSpan(f"r{step}", 0, 4096),), 4096, tokens[number])
            for step, number in enumerate(order)
        }
        return SyntheticRun(tuple(range(256)), (0,), {0: {}}, layouts)

    baseline, target = run(np.arange(256)), run(np.random.default_rng(1).permutation(256))
    aligner = aligner_of(baseline, target)
    values = {key: np.zeros((4096, 0)) for key in baseline.layouts}
    sides = []
    for name, side in (("baseline", baseline), ("target", target)):
        recorded = dataclasses.replace(side, tensors={"own": values})
        classes = aligner.classify_steps(name, recorded.rows("own"))  # type: ignore[arg-type]
        sides.append(_parts(recorded, classes))
    plan = aligner.plan(*sides)
    assert plan.matched == 1 << 20
    assert plan.baseline is not None
    assert plan.target is not None
    flat = np.concatenate([tokens[number] for number in np.random.default_rng(1).permutation(256)])
    assert np.array_equal(tokens.reshape(-1)[plan.baseline], flat[plan.target])


def _parts(run: SyntheticRun, classes: object) -> tuple[TokenPart, ...]:
    assert isinstance(classes, dict)
    return tuple(TokenPart(step, (), 0, 4096, classes[step].hold) for step in run.steps)

from __future__ import annotations

import itertools
from collections.abc import Callable

import ml_dtypes  # noqa: F401  numpy knows fp8 by its names
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from msgspec.structs import replace as with_fields

from comparator.diagnosis import Calibration, Options, TapKey, diagnose
from comparator.diagnosis.words import describe
from tests.comparator.diagnosis.simulator import (
    DENSE,
    HEAD_SIZE,
    Kernels,
    Model,
    Recording,
    at,
    compare,
    labels,
    profiles_of,
)

KERNELS = {
    "plain": Kernels(),
    "two ranks": Kernels(pieces=2),
    "four ranks": Kernels(pieces=4),
    "eager": Kernels(eager=True),
    "cut off": Kernels(cut_off=True),
    "fused": Kernels(fused_norm=True),
    "eager, two ranks, fused": Kernels(pieces=2, eager=True, fused_norm=True),
}
EXPERTS = Model(0, experts=True)


def scaled(factor, rows=slice(None), columns=slice(None)):
    def change(value):
        value[rows, columns] *= np.float32(factor)
        return value

    return change


DECODE, LAST = labels().decode, np.array([11, 51, 75])
FAULTS = {
    "scale": ("attn_output", 1, scaled(1.02), "scale", False),
    "scale of the MLP": ("mlp_output", 1, scaled(0.97), "scale", False),
    "row": ("mlp_output", 1, scaled(0.5, [30]), "row", False),
    "row scale": ("attn_output", 1, scaled(0.9, [30]), "row scale", False),
    "last tokens": ("attn_output", 1, scaled(0.7, LAST), "row", False),
    "decode": ("attn_output", 1, scaled(0.9, DECODE), "group", False),
    "group scale": ("attn_output", 1, scaled(0.95, DECODE), "group scale", False),
    "channel": ("mlp_output", 1, scaled(1.5, slice(None), [17]), "channel", False),
    "channel scale": ("attn_output", 1, scaled(1.3, slice(None), [17]), "channel scale", False),
    "head": ("attn_pre_o_proj", 1, scaled(0, slice(None), slice(HEAD_SIZE, 2 * HEAD_SIZE)), "head", False),
    "head scale": ("attn_pre_o_proj", 1, scaled(1.1, slice(None), slice(0, HEAD_SIZE)), "head scale", False),
    "offset": ("attn_output", 1, lambda value: value + np.float32(0.02) * np.std(value), "offset", False),
    "noise": ("mlp_output", 1, lambda value: value + 0.1 * np.std(value) * _noise(value.shape), "growth", False),
    "residual twice": ("pre_mlp_residual", 1, scaled(2), "sum identity", False),
    "branch dropped": ("residual", 1, lambda value: value * np.float32(0.5), "sum identity", False),
    "expert": ("expert 3", 1, scaled(0.5), "expert", True),
    "expert scale": ("expert 3", 1, scaled(0.9), "expert scale", True),
    "router": ("moe_router_logits", 1, lambda value: value + 0.2 * _noise(value.shape), "growth", True),
    "NaN": ("mlp_output", 1, lambda value: np.where(np.arange(value.size).reshape(value.shape) == 77, np.nan, value),
            "nonfinite", False),
    "zero": ("attn_output", 1, scaled(0), "zero", False),
}  # fmt: skip
PLACES = {"residual": TapKey("layer_input", 2), "expert 3": TapKey("moe_expert_output", 1)}


POSITIONS = labels().position


def _noise(shape):
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def clean():
    return {
        (experts, name): (EXPERTS if experts else DENSE).run(kernels)
        for experts in (False, True)
        for name, kernels in KERNELS.items()
    }


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KERNELS, 2))[::2])
def test_no_alarm_between_kernels_that_are_right(clean, experts, one, other):
    found = compare(clean[experts, one], clean[experts, other])
    assert found.verdict == "agree", (found.place, found.nearest, describe(found))
    assert "within rounding" in describe(found)


@pytest.mark.parametrize("baseline", ["two ranks", "eager"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_test_sees_its_fault_at_its_tap(clean, fault, baseline):
    tap, layer, change, test, experts = FAULTS[fault]
    target = (EXPERTS if experts else DENSE).run(Kernels(), at(tap, layer, change))
    found = compare(clean[experts, baseline], target, **({"top_k": 2} if experts else {}))
    place = PLACES.get(tap, TapKey(tap, layer))
    assert found.verdict == "differ"
    assert found.place == place, (found.place, describe(found))
    strengths = {one.name: one.strength for one in reversed(found.judgement(place).tests)}
    assert strengths[test] >= 1, strengths
    assert place.label in describe(found)
    later = found.judgement(TapKey("final_norm_output"))
    assert (later.judged, later.source) == ("inherited-from", place)


def test_the_first_difference_of_bits_under_equal_kernels_needs_no_size(clean):
    target = DENSE.run(Kernels(), at("attn_output", 1, scaled(1.004)))
    found = compare(clean[False, "plain"], target)
    assert found.place == TapKey("attn_output", 1)
    assert found.first_difference[0] == TapKey("attn_output", 1)


def test_equal_runs_agree_bit_for_bit(clean):
    found = compare(clean[True, "plain"], EXPERTS.run())
    assert found.verdict == "agree"
    assert found.nearest == 0
    assert describe(found) == "The runs agree bit for bit."


def test_identical_inputs_and_an_output_beyond_rounding(clean):
    change = lambda value: value + 0.03 * np.std(value) * _noise(value.shape)  # noqa: E731
    found = compare(clean[False, "plain"], DENSE.run(Kernels(), at("next_token_logits", None, change)))
    assert found.place == TapKey("next_token_logits")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("experts", [False, True])
def test_floors_follow_the_dtype(dtype, experts):
    model = EXPERTS if experts else DENSE
    baseline = model.run(Kernels(pieces=2, dtype=dtype))
    assert compare(baseline, model.run(Kernels(eager=True, dtype=dtype))).verdict == "agree"
    faulty = model.run(Kernels(dtype=dtype), at("attn_output", 1, scaled(1.005)))
    assert compare(baseline, faulty).place == TapKey("attn_output", 1)


def test_values_of_a_coarser_dtype_than_recorded_are_a_fault(clean):
    rounded = lambda value: value.astype("float16").view("int16").__and__(-256).view("float16").astype("float32")  # noqa: E731
    target = DENSE.run(Kernels(), at("mlp_output", 1, rounded))
    assert compare(clean[False, "eager"], target).place == TapKey("mlp_output", 1)


def test_sides_of_different_dtypes_agree_within_the_coarser_one(clean):
    found = compare(clean[False, "plain"], DENSE.run(Kernels(dtype="float32")))
    assert found.verdict == "agree"
    profiles, graph = profiles_of(clean[False, "plain"], DENSE.run(Kernels(dtype="float32")))
    mixed = [replace(one, target_dtype="float32") for one in profiles]
    assert any("float32" in note for note in diagnose(mixed, graph).notes)


def test_swapping_the_sides_keeps_the_verdict(clean):
    target = DENSE.run(Kernels(), at("attn_output", 1, scaled(1.02)))
    one, other = clean[False, "eager"], target
    there, back = compare(one, other), compare(other, one)
    assert there.place == back.place
    for forward in there.judgements:
        assert forward.strength == pytest.approx(back.judgement(forward.key).strength, rel=0.02, abs=0.02)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(seed):
    one, other = EXPERTS.run(Kernels(pieces=2)), EXPERTS.run(Kernels(eager=True))
    order = np.random.default_rng(seed).permutation(len(one.labels))
    shuffled = [
        Recording(
            {key: value[order] for key, value in run.values.items()},
            with_fields(
                run.labels,
                sequence=run.labels.sequence[order],
                position=run.labels.position[order],
                decode=run.labels.decode[order],
                border=None if run.labels.border is None else run.labels.border[order],
            ),
            run.dtype,
        )
        for run in (one, other)
    ]
    plain, mixed = compare(one, other), compare(*shuffled)
    for judgement in plain.judgements:
        assert judgement.strength == pytest.approx(mixed.judgement(judgement.key).strength, rel=1e-3, abs=1e-3)


def test_flips_are_counted_and_are_no_fault(clean):
    found = compare(clean[True, "eager, two ranks, fused"], clean[True, "four ranks"])
    assert found.verdict == "agree"
    assert found.top_k in (2, None)
    known = compare(clean[True, "eager, two ranks, fused"], clean[True, "four ranks"], top_k=2)
    assert known.top_k == 2
    assert len(known.flips) == 3
    assert all(flips.unexplained == 0 for flips in known.flips)
    tests = [test for judgement in known.judgements for test in judgement.tests]
    assert {type(number) for test in tests for number in (test.strength, test.value, test.threshold)} <= {float, int}


def test_calibration_raises_a_floor_and_hides_what_it_was_measured_on(clean):
    target = DENSE.run(Kernels(), at("mlp_output", 1, lambda value: value + 0.1 * np.std(value) * _noise(value.shape)))
    options = Options(Calibration({"mlp_output": 0.2}))
    assert compare(clean[False, "eager"], target).place == TapKey("mlp_output", 1)
    judgement = compare(clean[False, "eager"], target, options).judgement(TapKey("mlp_output", 1))
    assert judgement.strength < 1


def test_names_with_thresholds_of_their_own_are_no_place(clean):
    target = DENSE.run(Kernels(), at("attn_output", 1, scaled(1.02)))
    found = compare(clean[False, "eager"], target, Options(ignored=frozenset({"attn_output"})))
    assert found.place != TapKey("attn_output", 1)
    assert found.judgement(TapKey("attn_output", 1)).strength >= 1


def test_taps_without_a_profile_are_not_judged(clean):
    profiles, graph = profiles_of(clean[False, "plain"], clean[False, "eager"])
    found = diagnose(profiles[1:], graph)
    assert found.judgements[0].judged == "not-judged"
    assert found.verdict == "agree"
    assert diagnose([], graph).verdict == "undecided"


def test_a_cached_prefix_may_hand_on_the_error_of_any_row(clean):
    """Rows 20 on of a sequence attend to tokens that were computed for another one, where the choice flipped."""
    profiles, graph = profiles_of(clean[True, "eager"], clean[True, "two ranks"])
    found = []
    for one in profiles:
        error = one.error.copy()
        if one.key == TapKey("layer_input", 1):
            error[2] = 0.5
        if one.key == TapKey("attn_pre_o_proj", 1):
            error[45] = 0.3
        moved = with_fields(one.labels, position=one.labels.position + 60 * (one.labels.sequence == 1))
        added = error if one.operation == "attention" else one.added
        found.append([replace(one, error=error, added=added, labels=label) for label in (one.labels, moved)])
    whole, cached = ([pair[number] for pair in found] for number in (0, 1))
    assert diagnose(whole, graph).place == TapKey("attn_pre_o_proj", 1)
    assert diagnose(cached, graph).place != TapKey("attn_pre_o_proj", 1)


def test_names_of_taps_keep_their_letters_and_equal_runs_need_no_notes(clean):
    note = "final_norm: its input is taken to be mlp_output, the tap before it"
    within = compare(clean[False, "plain"], clean[False, "eager"])
    assert f" {note}." in describe(replace(within, notes=(note,)))
    equal = compare(clean[False, "plain"], DENSE.run())
    assert note not in describe(replace(equal, notes=(note,)))


@pytest.mark.parametrize(
    ("change", "test", "where"),
    [
        (scaled(1.04, slice(None), slice(0, 64)), "shard scale", "shard 0 of 2"),
        (scaled(1.04, slice(None), slice(64, 128)), "shard scale", "shard 1 of 2"),
        (scaled(0.96, slice(None), slice(64, 128)), "shard scale", "shard 1 of 2"),
        (scaled(0, slice(None), slice(64, 128)), "shard", "shard 1 of 2"),
    ],
)
def test_what_is_wrong_with_one_shard_is_said_of_the_shard(clean, change, test, where):
    target = DENSE.run(Kernels(), at("attn_pre_o_proj", 1, change))
    found = compare(clean[False, "eager"], target, shards=(2,))
    assert found.place == TapKey("attn_pre_o_proj", 1)
    strongest = {one.name: one for one in reversed(found.judgement(found.place).tests)}
    assert strongest[test].strength >= 1
    assert strongest[test].where == where
    assert compare(clean[False, "eager"], DENSE.run(), shards=(2,)).verdict == "agree"


def test_a_factor_of_later_positions_is_one_of_a_range_of_positions(clean):
    target = DENSE.run(Kernels(), at("attn_output", 1, scaled(0.95, POSITIONS >= 16)))
    found = compare(clean[False, "eager"], target)
    assert found.place == TapKey("attn_output", 1)
    failed = {one.where: one for one in found.judgement(found.place).tests if one.name == "group scale"}
    assert failed["positions from 16 on"].strength >= 1
    assert failed["positions from 16 on"].value == pytest.approx(-0.05, abs=0.01)


def test_bits_of_rows_whose_cached_prefix_was_not_compared_are_no_evidence(clean):
    """The keys and values of a cached prefix may have been computed in another batch, and so in other bits."""
    sequence = labels().sequence == 1

    def one_ulp(value: np.ndarray) -> np.ndarray:
        value[sequence, ::9] *= np.float32(1 + 2**-8)
        return value

    target = DENSE.run(Kernels(), at("attn_pre_o_proj", 1, one_ulp))
    assert compare(clean[False, "plain"], target).place == TapKey("attn_pre_o_proj", 1)
    moved = with_fields(labels(), position=labels().position + 60 * sequence)
    found = compare(*(Recording(run.values, moved, run.dtype) for run in (clean[False, "plain"], target)))
    assert found.verdict == "agree"


def test_rows_behind_one_key_with_other_bits_are_one_event(clean):
    """A batch of another size may round one key of one token otherwise; all later rows of its sequence follow it."""

    def behind(*sequences: int) -> Callable[[np.ndarray], np.ndarray]:
        rows = np.isin(labels().sequence, sequences) & (labels().position >= 3)

        def few_elements(value: np.ndarray) -> np.ndarray:
            value[rows, 3::16] *= np.float32(1 + 2**-8)
            return value

        return few_elements

    chance = DENSE.run(Kernels(), at("attn_pre_o_proj", 1, behind(1)))
    assert compare(clean[False, "plain"], chance).verdict == "agree"
    fault = DENSE.run(Kernels(), at("mlp_output", 1, behind(1)))
    assert compare(clean[False, "plain"], fault).place == TapKey("mlp_output", 1)


def test_a_factor_of_some_rows_has_the_size_that_right_kernels_do_not_have(clean):
    """Where all other rows are bit-identical, a factor of a third of a rounding stands out over nothing."""
    values = {key: value.copy() for key, value in DENSE.run().values.items()}
    rows = labels().sequence == 1
    values[TapKey("mlp_output", 1)][rows] *= np.float32(1.0012)
    target = Recording(values, labels(), "bfloat16")
    found = compare(clean[False, "plain"], target).judgement(TapKey("mlp_output", 1))
    assert max(one.strength for one in found.tests if one.name == "group scale") < 1


@pytest.mark.parametrize("other_engine", [False, True])
def test_a_factor_of_the_embedding_is_a_fault_from_a_smaller_size_on(other_engine):
    """A constant of 55.43 is rounded to 55.5 in bf16. Right kernels may differ by as much, but none runs there."""
    exact, rounded = (DENSE.run(Kernels(), at("layer_input", 0, scaled(factor))) for factor in (55.4256, 55.5))
    found = compare(exact, rounded, Options(other_engine=other_engine))
    assert found.place == TapKey("layer_input", 0)


def test_another_engine_may_cut_off_what_is_stored(clean):
    """A factor of .993 on attentions was measured between SGLang and vLLM on a CPU; one of .97 is still a fault."""
    small, large = (DENSE.run(Kernels(), at("attn_pre_o_proj", 0, scaled(factor))) for factor in (0.993, 0.97))
    other = Options(other_engine=True)
    assert compare(clean[False, "eager"], small).place == TapKey("attn_pre_o_proj", 0)
    assert compare(clean[False, "eager"], small, other).verdict == "agree"
    assert compare(clean[False, "eager"], large, other).place == TapKey("attn_pre_o_proj", 0)


@pytest.mark.parametrize(
    ("rows", "group", "said"),
    [
        (DECODE, "decode", "the rows of decode passes alone (12 of 76)"),
        (LAST, "last token", "the last token of each sequence alone (3 of 76) that is beyond"),
        (slice(12, 52), "sequence 1", "the rows of sequence 1 alone"),
        (slice(None), "all", "all of its rows"),
        ([20, 21, 23], "", "3 of 76 rows, between positions 8 and 11, are beyond rounding"),
        ([20], "", "1 of 76 rows, at position 8, is beyond rounding"),
    ],
)
def test_the_rows_that_differ_are_named_by_what_they_have_in_common(clean, rows, group, said):
    target = DENSE.run(Kernels(), at("attn_output", 1, scaled(0.5, rows)))
    found = compare(clean[False, "eager"], target)
    assert found.extent.group == group
    assert said in describe(found)


def test_weights_of_experts_that_agree_are_compared_in_words(clean):
    found = compare(clean[True, "eager, two ranks, fused"], clean[True, "four ranks"], top_k=2)
    apart = max(flips.weights_apart for flips in found.flips)
    assert 0 < apart < 0.05
    assert f"their weights differ by {apart:.2g} at most" in describe(found)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_side_that_is_quantised_to_fp8_agrees_within_its_dtype_and_not_within_another(clean, name, layer):
    """What is stored in fp8 on one side, as its record says, has the floor of fp8; what says bfloat16 has not."""
    quantised = lambda value: value.astype(name).astype(np.float32)  # noqa: E731
    target = DENSE.run(Kernels(), at("attn_pre_o_proj", layer, quantised))
    profiles, graph = profiles_of(clean[False, "eager"], target)
    key = TapKey("attn_pre_o_proj", layer)
    assert diagnose(profiles, graph).place == key
    told = [replace(one, target_dtype=name) if one.key == key else one for one in profiles]
    found = diagnose(told, graph)
    assert found.verdict == "agree", describe(found)
    assert any(name in note for note in found.notes)

"""Verdicts on tensors that are constant, empty, not finite, or of a wrong shape, one tap or one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

import comparator
from comparator.diagnosis import (
    RowLabels,
    SideRows,
    TapDeclaration,
    TapGraph,
    TapKey,
    TapRows,
    build_graph,
    diagnose,
    profile,
)
from comparator.diagnosis.channel_blocks import independent_rows
from comparator.diagnosis.kernel import Matrices, row_sums
from comparator.diagnosis.measures import Difference, normalise
from comparator.diagnosis.precision import precision_of
from comparator.diagnosis.strengths import Context, run_tests
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.tap_rows import Mask, Single
from comparator.diagnosis.words import describe
from tests.comparator.diagnosis.simulator import (
    DENSE,
    Kernels,
    Recording,
    at,
    compare,
    profiles_of,
)
from tests.comparator.fakes import run_of


def _one_tap(baseline, target, **changes):
    rows = Recording({TapKey("mine"): baseline}, _plain(len(baseline)), "bfloat16")
    return compare(rows, Recording({TapKey("mine"): target}, rows.labels, "bfloat16"), **changes)


def _plain(rows):
    return RowLabels(np.zeros(rows, np.int64), np.arange(rows), np.zeros(rows, bool))


@pytest.mark.parametrize(
    ("baseline", "target", "verdict"),
    [
        (np.ones((1, 8)), np.ones((1, 8)) * 1.5, "differ"),
        (np.ones((1, 8)), np.ones((1, 8)) * 1.001, "agree"),
        (np.zeros((5, 8)), np.zeros((5, 8)), "agree"),
        (np.zeros((5, 8)), np.ones((5, 8)), "differ"),
        (np.full((9, 64), 3.0), np.full((9, 64), 3.0), "agree"),
        (np.full((9, 64), 3.0), np.full((9, 64), 3.3), "differ"),
        (np.full((9, 64), np.nan), np.full((9, 64), np.nan), "agree"),
        (np.full((9, 64), np.inf), np.full((9, 64), -np.inf), "differ"),
        (np.full((9, 64), np.inf), np.full((9, 64), 1.0), "differ"),
        (np.empty((0, 8)), np.empty((0, 8)), "undecided"),
        (np.empty((8, 0)), np.empty((8, 0)), "undecided"),
        (np.ones((9, 1)), np.ones((9, 1)) * 2, "differ"),
        (np.full((9, 64), 1e38), np.full((9, 64), -1e38), "differ"),
        (np.full((9, 64), 1e-40), np.full((9, 64), 1e-40), "agree"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_degenerate_tensors_have_a_defined_verdict(baseline, target, verdict):
    found = _one_tap(baseline.astype(np.float32), target.astype(np.float32))
    assert found.verdict == verdict
    assert describe(found)


def test_wrong_shapes_are_named():
    profiles, graph = profiles_of(DENSE.run(), DENSE.run())
    rows = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="layer_input layer 0: expected two arrays"):
        profile(TapRows(profiles[0].key, SideRows(rows, rows[:2], _plain(3))), graph.nodes[0])


def test_one_row_with_other_bits_may_be_chance_and_many_rows_not() -> None:
    def last_place(rows: slice) -> Callable[[np.ndarray], np.ndarray]:
        def change(value: np.ndarray) -> np.ndarray:
            value[rows, ::3] *= np.float32(1 + 2**-7)
            return value

        return change

    baseline = DENSE.run(Kernels())
    chance = compare(baseline, DENSE.run(Kernels(), at("mlp_output", 1, last_place(slice(7, 8)))))
    assert chance.verdict == "agree"
    fault = compare(baseline, DENSE.run(Kernels(), at("mlp_output", 1, last_place(slice(None)))))
    assert fault.place == TapKey("mlp_output", 1)


def test_a_fault_in_few_rows_is_not_described_by_the_error_of_the_middle_row() -> None:
    baseline = np.random.default_rng(0).standard_normal((15, 64)).astype(np.float32)
    target = baseline.copy()
    target[12:] *= 1.5
    found = _one_tap(baseline, target)
    assert found.verdict == "differ"
    assert "most of its rows are the same on both sides" in describe(found)
    assert "error 0" not in describe(found)


def test_a_row_that_differs_much_does_not_decide_alone_where_the_others_are_the_same():
    """Behind a flip of experts a row is off by a third; channels, factors and offsets are judged by all rows."""
    middle, added = np.ones((8, 64), np.float32), np.zeros((8, 64), np.float32)
    added[3] = 0.3
    sizes = np.linalg.norm(middle, axis=1)

    def normalised(floor: float = 0.0) -> Single:
        matrices = Matrices(middle, added, parts=True)
        return normalise(matrices, row_sums(matrices), sizes, floor).arrays()[1]

    assert np.linalg.norm(normalised(0.003)) == pytest.approx(2 * 0.003)
    assert np.linalg.norm(normalised()) == pytest.approx(0.3)
    added[:] = 0.02
    assert np.linalg.norm(normalised(0.003)[3]) == pytest.approx(0.02)


def _errors_of(added: Single) -> Difference:
    middle = np.random.default_rng(1).standard_normal(added.shape).astype(np.float32)
    matrices = Matrices(middle, added, parts=True)
    return normalise(matrices, row_sums(matrices), np.linalg.norm(middle, axis=1))


def test_rows_that_share_an_error_count_as_one():
    """As those of a sequence do behind an attention, or of a prompt that repeats one token."""
    noise = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float32) * 1e-3
    assert independent_rows(_errors_of(noise)) > 24
    assert independent_rows(_errors_of(np.repeat(noise[:1], 40, axis=0))) == pytest.approx(1, rel=0.1)
    assert independent_rows(_errors_of(np.repeat(noise[:4], 10, axis=0))) == pytest.approx(4, rel=0.25)
    assert independent_rows(_errors_of(noise * 0)) == np.inf
    one_channel = noise.copy()
    one_channel[:, 7] += 0.1
    assert independent_rows(_errors_of(one_channel)) > 12  # a fault there is nothing that rows share


@pytest.mark.parametrize("seed", range(8))
def test_the_error_that_equal_rows_share_is_no_fault_of_a_channel(seed: int) -> None:
    """Of one error in 256 channels one is four times the usual, in every row alike."""
    generator = np.random.default_rng(seed)
    baseline = np.repeat(generator.standard_normal((1, 256)).astype(np.float32), 30, axis=0)
    error = 0.003 * generator.standard_normal(256).astype(np.float32)
    assert _one_tap(baseline, baseline + error).verdict == "agree"
    rows = generator.standard_normal((30, 256)).astype(np.float32)
    found = rows + 0.003 * generator.standard_normal(rows.shape).astype(np.float32)
    found[:, 9] *= np.float32(1.1)
    assert _one_tap(rows, found).verdict == "differ"


@pytest.mark.parametrize("seed", range(8))
def test_the_rounding_that_equal_rows_share_is_no_factor_of_a_channel(seed: int) -> None:
    """Most of the channels of one row of bfloat16 are equal, so that the usual error is small; a factor in rows that
    are alike is significant whatever it is."""
    generator = np.random.default_rng(seed)
    row = generator.standard_normal((1, 256)).astype(ml_dtypes.bfloat16).astype(np.float32)
    changed = np.where(generator.random(row.shape) < 0.4, row * np.float32(1 + 2**-8), row)
    changed[0, 24] = row[0, 24] * np.float32(1 + 2**-6)
    repeated = np.repeat(row, 30, axis=0), np.repeat(changed.astype(ml_dtypes.bfloat16).astype(np.float32), 30, axis=0)
    tests = {test.name: test for test in _one_tap(*repeated).judgements[0].tests}
    assert tests["channel scale"].threshold > tests["channel"].threshold * 0.99


@pytest.mark.parametrize("unmeasured", ["layer_input", "attn_output", "pre_mlp_residual"])
def test_what_was_not_measured_hands_on_the_error_before_it(unmeasured: str) -> None:
    """A tap that is there on both sides and could not be measured (another level, a shape that cannot be joined) does
    not make its error that of the tap behind it: not where that adds it up either."""
    baseline, target = DENSE.run(Kernels()), DENSE.run(Kernels(pieces=4, eager=True, fused_norm=True))

    profiles, graph = profiles_of(baseline, target, unmeasured=unmeasured)
    found = diagnose(profiles, graph)
    assert found.verdict == "agree", describe(found)
    scaled = DENSE.run(Kernels(pieces=4, eager=True), at("mlp_output", 1, lambda value: value * np.float32(1.5)))
    profiles, graph = profiles_of(baseline, scaled, unmeasured=unmeasured)
    assert diagnose(profiles, graph).place == TapKey("mlp_output", 1)


@pytest.mark.parametrize("code", ["mixer", "attention"])
def test_equal_bits_in_a_layer_that_other_code_computes_say_nothing(code: str) -> None:
    """A hybrid's first layer is a recurrence: that its bits are equal under another attention is no measure."""

    def last_place(value: np.ndarray) -> np.ndarray:
        value[:, ::3] *= np.float32(1 + 2**-7)
        return value

    baseline, target = DENSE.run(Kernels()), DENSE.run(Kernels(), at("attn_output", 1, last_place))
    profiles, graph = profiles_of(baseline, target)
    nodes = tuple(replace(node, code=code if node.key.layer == 0 else "attention") for node in graph.nodes)
    bits = [test for one in diagnose(profiles, replace(graph, nodes=nodes)).judgements for test in one.tests]
    assert any(test.name == "bits" for test in bits) == (code == "attention")


@pytest.mark.parametrize(("name", "kept"), [("bfloat16", 16), ("float16", 13), ("float32", 0)])
def test_what_was_computed_in_another_dtype_is_no_more_exact_as_float32(name: str, kept: int) -> None:
    values = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    values = (values.view(np.uint32) >> kept << kept).view(np.float32)
    assert precision_of(values) == name
    assert precision_of(np.zeros((40, 16), np.float32)) == "float32", "nothing tells"
    assert precision_of(values.astype(np.float16)) == "float16"


def test_logits_that_are_handed_on_as_float32_are_judged_as_bfloat16() -> None:
    random = np.random.default_rng(0)
    rounded = random.standard_normal((20, 64)).astype(ml_dtypes.bfloat16).astype(np.float32)
    up_or_down = random.integers(-1, 2, rounded.shape).astype(np.int32) << 16
    other = (rounded.view(np.int32) + up_or_down * (random.random(rounded.shape) < 0.2)).view(np.float32)
    run = [run_of(values, dims="t vocab", name="next_token_logits") for values in (rounded, other)]
    assert comparator.compare(*run).passed
    exact = [run_of(values + np.float32(1e-6), dims="t vocab", name="next_token_logits") for values in (rounded, other)]
    assert not comparator.compare(*exact).passed
    assert not comparator.compare(run[0], exact[1]).passed, "a router in bfloat16 against one in float32"


def test_a_sum_of_three_is_rounded_twice() -> None:
    """Attention and MLP side by side: the residual stream is a sum of three, in whichever order."""
    random = np.random.default_rng(0)
    parts = [random.standard_normal((200, 64)).astype(ml_dtypes.bfloat16) for _ in range(3)]
    (first, second, third), store = (one.astype(np.float32) for one in parts), ml_dtypes.bfloat16
    sums = [
        (left.astype(store).astype(np.float32) + right).astype(store).astype(np.float32)
        for left, right in ((first + second, third), (first + third, second))
    ]
    keys = [TapKey(name, 0) for name in ("a", "b", "c", "sum")]
    declared = [TapDeclaration(key) for key in keys[:3]]
    graph = build_graph([*declared, TapDeclaration(keys[3], ("a", "b", "c"), "sum")])
    assert isinstance(graph, TapGraph)
    labels = _plain(200)
    operands = tuple(SideRows(one, one, labels) for one in (first, second, third))
    rows = TapRows(keys[3], SideRows(*sums, labels), "bfloat16", "bfloat16", operands=operands)
    found = diagnose([profile(rows, graph.nodes[3])], graph).judgement(keys[3])
    assert found is not None
    growth = next(test.strength for test in found.tests if test.name == "growth")
    assert 0.3 < growth < 0.75


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_few_values_that_are_small_by_chance_have_the_error_of_usual_ones(channels: int) -> None:
    """A gate with one channel: relative to values near zero, any rounding is a large error."""
    random = np.random.default_rng(0)
    baseline = random.standard_normal((2000, channels)).astype(np.float32)
    target = baseline + np.float32(2**-10) * random.standard_normal(baseline.shape).astype(np.float32)
    assert _one_tap(baseline, target).verdict == "agree"
    target[700] += 1
    found = _one_tap(baseline, target)
    assert (found.verdict, found.place) == ("differ", TapKey("mine"))


def test_limits_of_rows_that_share_the_error_of_one_token() -> None:
    profiles, _ = profiles_of(DENSE.run(Kernels()), DENSE.run(Kernels(pieces=4, eager=True)))
    found = next(one for one in profiles if one.key == TapKey("attn_pre_o_proj", 1))
    found = replace(found, independent=np.inf)
    every, none = np.ones(found.rows, np.bool_), np.zeros(found.rows, np.bool_)

    def threshold(name: str, profile: TapProfile, compared: Mask, steady: Mask) -> float:
        ones = np.ones(found.rows)
        context = Context(ratio=ones, row_ratio=ones, floor=ones * 0.2, own_floor=0.2, compared=compared, steady=steady)
        return next(test.threshold for test in run_tests(profile, context) if test.name == name)

    # One head may look at the token whose experts flipped.
    assert threshold("head", found, every, every) < threshold("head", found, every, none)
    # Inputs of experts share errors, which their outputs hide.
    experts, few = replace(found, operation="moe"), every & (np.arange(found.rows) < 30)
    assert threshold("scale", found, few, every) < threshold("scale", replace(found, independent=4.0), few, every)
    assert threshold("scale", experts, every, every) * 1.2 < threshold("scale", experts, few, every)

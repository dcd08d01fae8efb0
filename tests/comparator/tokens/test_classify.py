"""What the rows of a tensor are, by row counts alone."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from comparator.errors import PairError
from comparator.plan.tokens.interface import RowsClass, RowsQuery
from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout
from testbed.synthetic_engine import Engine, Request, serve
from testbed.synthetic_runs import ContextParallel, SyntheticRun, record
from tests.comparator.tokens.joining import aligner_of, join

REQUESTS = [
    Request("one", (11, 12, 13, 14, 15), (21, 22, 23, 24)),
    Request("two", (31, 32, 33), (41, 42)),
    Request("three", (51, 52, 53, 54, 55, 56, 57), (61, 62, 63)),
]


def classes_of(
    run: SyntheticRun, form: str, split_axes: tuple[str, ...] = (), data_parallel_axis: str | None = None
) -> set[RowsClass]:
    aligner = aligner_of(run, run)
    found = aligner.classify_steps("baseline", run.rows(form), split_axes, data_parallel_axis)
    return {msgspec.structs.replace(rows_class, reason="") for rows_class in found.values()}


def run_of(**engine: object) -> SyntheticRun:
    return record(serve(REQUESTS, Engine(**{"data_parallel": 2, "attention_tensor_parallel": 2, "seed": 3, **engine})))  # type: ignore[arg-type]


@pytest.mark.parametrize("padding", ["max_len", "sum_len"])
@pytest.mark.parametrize(
    ("form", "hold", "token_axes", "scattered"),
    [
        ("own", "own", ("attn_dp",), ()),
        ("partial", "own", ("attn_dp",), ()),
        ("gathered", "gathered", (), ()),
        ("scattered", "own", ("attn_dp",), ("attn_tp",)),
    ],
)
def test_forms_under_data_parallel_attention(
    padding: str, form: str, hold: str, token_axes: tuple[str, ...], scattered: tuple[str, ...]
) -> None:
    (found,) = classes_of(run_of(padding=padding), form)
    assert (found.hold, found.token_axes, found.scattered_over) == (hold, token_axes, scattered)


def test_a_scattered_gathered_buffer_back_to_back() -> None:
    assert classes_of(run_of(padding="sum_len"), "gathered_scattered") == {RowsClass("gathered", (), ("tp",))}


def test_without_data_parallelism_rows_are_own_and_parted_by_nothing() -> None:
    run = record(serve(REQUESTS, Engine(attention_tensor_parallel=4)))
    assert classes_of(run, "own") == {RowsClass("own")}
    assert classes_of(run, "scattered") == {RowsClass("own", (), ("attn_tp",))}


def test_real_rows_only() -> None:
    assert classes_of(run_of(padding="max_len", pad_to=8), "real") == {RowsClass("own", ("attn_dp",))}


def test_rows_that_fit_nothing_are_unknown_with_a_reason() -> None:
    run = run_of()
    odd = {key: np.zeros((1234, 4)) for key in run.tensors["own"]}
    found = aligner_of(run, run).classify_steps("baseline", dataclasses.replace(run, tensors={"odd": odd}).rows("odd"))
    assert {rows_class.hold for rows_class in found.values()} == {"unknown"}
    assert "1234" in found[0].reason


def test_without_layouts_rows_are_unknown_and_dims_may_say_who_owns_them() -> None:
    run = dataclasses.replace(run_of(), layouts={})
    assert classes_of(run, "own") == {RowsClass("unknown", (), (), "")}
    assert classes_of(run, "own", data_parallel_axis="attn_dp") == {RowsClass("unknown", ("attn_dp",), (), "")}


def ambiguous(counts: tuple[int, int] = (9, 3), *, step: int = 0) -> SyntheticRun:
    """Recorded on the ranks of data-parallel rank 1 alone, whose rows may be as many as a quarter of the buffer."""
    parallel = {rank: {"tp": (rank, 4), "attn_dp": (rank // 2, 2), "attn_tp": (rank % 2, 2)} for rank in range(4)}
    layouts = {
        (step, rank): TokenLayout(
            "extend",
            (SequenceSpan(f"r{rank // 2}", 0, counts[rank // 2]),),
            counts[rank // 2],
            np.arange(counts[rank // 2]) + 100 * (rank // 2),
            data_parallel=DataParallelRows("attn_dp", rank // 2, 2, counts, counts, "sum_len"),
        )
        for rank in range(4)
    }
    values = {(step, rank): np.zeros((counts[1], 4)) for rank in (2, 3)}
    return SyntheticRun((step,), (0, 1, 2, 3), parallel, layouts, {"own": values})


def test_what_cannot_be_decided_is_an_error_with_a_hint() -> None:
    run = ambiguous()
    with pytest.raises(PairError, match="own rows or gathered rows scattered over tp") as caught:
        classes_of(run, "own")
    assert "dp:=attn_dp" in caught.value.hint
    assert "dp:=moe_dp" in caught.value.hint


def test_dims_decide_what_row_counts_cannot() -> None:
    run = ambiguous()
    assert classes_of(run, "own", data_parallel_axis="attn_dp") == {RowsClass("own", ("attn_dp",))}
    assert classes_of(run, "own", data_parallel_axis="moe_dp") == {RowsClass("gathered", (), ("tp",))}


def test_all_steps_together_decide_what_one_step_leaves_open() -> None:
    first, second = ambiguous(), ambiguous((2, 4), step=1)
    run = dataclasses.replace(
        first,
        steps=(0, 1),
        layouts={**first.layouts, **second.layouts},
        tensors={"own": {**first.tensors["own"], **second.tensors["own"]}},
    )
    assert classes_of(run, "own") == {RowsClass("own", ("attn_dp",))}
    with pytest.raises(PairError):
        aligner_of(run, run).classify(RowsQuery("baseline", 0, run.rows("own")[0]))


@pytest.mark.parametrize("ordering", ["zigzag", "natural", "interleave"])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("split_axes", [("attn_cp",), ()])
def test_context_parallel_ranks_are_parts(ordering: str, local: bool, split_axes: tuple[str, ...]) -> None:
    schedule = serve([REQUESTS[0], REQUESTS[2]], Engine())
    run = record(schedule, context=ContextParallel(2, ordering, local))
    assert classes_of(run, "own", split_axes) == {RowsClass("own", ("attn_cp",))}


def test_rows_are_read_per_kind_of_pass_when_no_reading_fits_all() -> None:
    """Gathered in prefill, own in decode."""
    run = run_of(padding="max_len")
    prefills = {step for step in run.steps if "extend" in {run.layouts[step, rank].forward_mode for rank in run.ranks}}
    mixed = {key: run.tensors["gathered" if key[0] in prefills else "own"][key] for key in run.tensors["own"]}
    run = dataclasses.replace(run, tensors={"mixed": mixed})
    found = aligner_of(run, run).classify_steps("baseline", run.rows("mixed"))
    for step, rows_class in found.items():
        assert rows_class.hold == ("gathered" if step in prefills else "own")
        assert "passes)" in rows_class.reason


def test_axes_are_found_from_layouts_that_differ() -> None:
    """Ranks of an axis with a name of its own serve different sequences: they are parts."""
    run = run_of(attention_tensor_parallel=1)
    parallel = {rank: {"replica_group": (rank, 2)} for rank in run.ranks}
    layouts = {key: dataclasses.replace(layout, data_parallel=None) for key, layout in run.layouts.items()}
    renamed = dataclasses.replace(run, parallel=parallel, layouts=layouts)
    assert classes_of(renamed, "own") == {RowsClass("own", ("replica_group",))}


def _padded(values: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([values, np.full((rows - len(values), values.shape[1]), 7.0)])


def replayed(run: SyntheticRun) -> SyntheticRun:
    """The run as captured graphs record it: decode passes have as many rows as the graph, the layouts do not."""
    tensors: dict[str, dict[tuple[int, int], np.ndarray]] = {"own": {}, "gathered": {}}
    for step, rank in run.tensors["own"]:
        own = run.tensors["own"][step, rank]
        layout = run.layouts[step, rank]
        gathered = run.tensors["gathered"][step, rank]
        if all(run.layouts[step, peer].forward_mode in {"decode", "idle"} for peer in run.ranks):
            shares = layout.data_parallel.rows if layout.data_parallel is not None else (layout.rows,)
            size = 1 << (max(shares) - 1).bit_length()
            own = _padded(own, size)
            gathered = np.concatenate([_padded(piece, size) for piece in np.split(gathered, np.cumsum(shares)[:-1])])
        tensors["own"][step, rank], tensors["gathered"][step, rank] = own, gathered
    return dataclasses.replace(run, tensors=tensors)


@pytest.mark.parametrize("form", ["own", "gathered"])
@pytest.mark.parametrize(
    "engine",
    [
        Engine(),
        Engine(data_parallel=2, padding="max_len", seed=3),
        Engine(data_parallel=2, padding="sum_len", seed=15),
    ],
)
def test_rows_that_a_captured_graph_pads(engine: Engine, form: str) -> None:
    many = [*REQUESTS, Request("four", (71, 72), (81, 82, 83, 84, 85, 86)), Request("five", (9,), (1, 2, 3, 4, 5, 6))]
    run = record(serve(many, dataclasses.replace(engine, max_running=8)))
    graphs = replayed(run)
    assert graphs.rows(form) != run.rows(form), "no pass is padded, so this tests nothing"
    (found,) = classes_of(graphs, form)
    assert found.hold == ("gathered" if form == "gathered" and engine.data_parallel > 1 else "own")
    joined = join(record(serve(many, Engine(max_running=1))), graphs, target_form=form)
    assert joined.plan.matched == sum(len(request.tokens) for request in many)
    assert joined.unequal.size == 0


def test_rows_repeated_for_every_expert_are_not_taken_for_padding() -> None:
    run = record(serve(REQUESTS, Engine()))
    repeated = {key: np.repeat(values, 2, axis=0) for key, values in run.tensors["own"].items()}
    found = classes_of(dataclasses.replace(run, tensors={"own": repeated}), "own")
    assert {rows_class.hold for rows_class in found} == {"unknown"}

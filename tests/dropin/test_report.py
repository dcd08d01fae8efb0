"""The report of a comparison of two dumps of SGLang's, as its own readers expect it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comparator import compare
from comparator.cli import main
from tests.differential.layouts import World
from tests.differential.scenarios import Dump

ONE = World("single", ({},))
TWO = World("tp2", ({"tp": (0, 2)}, {"tp": (1, 2)}))

Line = dict[str, Any]


def report_of(folder: Path, *flags: str, schema: str | None = None) -> list[Line]:
    """The lines of the report on ``baseline`` and ``target`` in a folder."""
    path = folder / "report.jsonl"
    chosen = () if schema is None else ("--report-schema", schema)
    main([str(folder / "baseline"), str(folder / "target"), "--report-path", str(path), *flags, *chosen])
    return [json.loads(line) for line in path.read_text().splitlines()]


def pair_of(folder: Path, world: World = ONE) -> tuple[Dump, Dump]:
    paths = folder / "baseline", folder / "target"
    for path in paths:
        path.mkdir()
    return Dump(paths[0], world), Dump(paths[1], world)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A tensor in two halves on two ranks, in bfloat16 on one side, in two steps, that differs; and a value."""
    whole = torch.linspace(-1, 1, 64).reshape(8, 8)
    for dump, factor, dtype in zip(pair_of(tmp_path, TWO), (1, 1.5), (torch.float32, torch.bfloat16), strict=True):
        for step in range(2):
            for rank in range(2):
                half = (whole * factor)[:, 4 * rank : 4 * rank + 4].to(dtype)
                dump.write(step, rank, "out", half, "t h[tp]")
        dump.write(0, 0, "scale", 0.5)
    return tmp_path


def test_lines_have_the_fields_of_sglangs_report_and_no_others(halves: Path) -> None:
    lines = report_of(halves, "--preset", "sglang_megatron")
    kinds = [line["type"] for line in lines]
    assert kinds[0] == "config"
    assert kinds[-1] == "summary"
    assert {"rank_info", "comparison_tensor", "comparison_non_tensor"} <= set(kinds)
    assert not {"diagnosis", "accounts"} & set(kinds)
    assert set(lines[-1]) == {"type", "errors", "infos", "total", "passed", "failed", "skipped", "errored"}
    assert {note["kind"] for line in lines for note in line["infos"]} <= {"info"}
    (tensor,) = [line for line in lines if line["type"] == "comparison_tensor"]
    assert not {"category", "tags", "tokens", "tap", "level"} & set(tensor)
    assert not {"relative_l2", "differing"} & set(tensor["diff"])
    assert set(tensor["raw_bundle_info"]["x"]["files"][0]) == {"shape", "dtype", "rank", "parallel_info", "filename"}


def test_our_own_form_is_there_on_request(halves: Path) -> None:
    lines = report_of(halves, "--preset", "sglang_megatron", schema="tensortap")
    assert lines[-1]["exit_code"] == 1
    assert [line["category"] for line in lines if line["type"] == "comparison_tensor"] == ["failed"]


def test_a_failed_tensor_comes_with_samples_percentiles_and_every_token(halves: Path) -> None:
    flags = ("--preset", "sglang_megatron", "--visualize-per-token", str(halves / "tokens.png"))
    (tensor,) = [line for line in report_of(halves, *flags) if line["type"] == "comparison_tensor"]
    assert tensor["baseline"]["sample"] != tensor["target"]["sample"]
    assert tensor["diff_downcast"]["abs_diff_percentiles"].keys() == tensor["diff"]["abs_diff_percentiles"].keys()
    assert tensor["diff"]["abs_diff_percentiles"]
    # 1 - 2 * 1.5 / (1 + 1.5**2): the same for every token, but for the rounding to bfloat16
    assert tensor["diff"]["per_token_rel_diff"] == pytest.approx([1 / 13] * 16, rel=0.1)


def test_tokens_are_not_listed_unless_asked_for(halves: Path) -> None:
    (tensor,) = [
        line for line in report_of(halves, "--preset", "sglang_megatron") if line["type"] == "comparison_tensor"
    ]
    assert tensor["diff"]["per_token_rel_diff"] is None


def test_the_plan_is_traced(halves: Path) -> None:
    (tensor,) = [
        line for line in report_of(halves, "--preset", "sglang_megatron") if line["type"] == "comparison_tensor"
    ]
    plan = tensor["traced_plan"]
    assert plan["plan"]["token_aligner_mode"] == "concat_steps"
    steps = plan["per_side"]["x"]["step_plans"]
    assert [step["step"] for step in steps] == [0, 1]
    assert sorted(index for step in steps for index in step["input_object_indices"]) == [0, 1, 2, 3]
    (traced,) = steps[0]["sub_plans"]
    assert traced["plan"] == {
        "type": "unsharder",
        "axis": "tp",
        "params": {"op": "concat", "dim_name": "h"},
        "groups": [[0, 1]],
    }
    assert traced["snapshot"] == {"input_shapes": [[8, 4], [8, 4]], "output_shapes": [[8, 8]]}
    assert plan["plan"]["per_step_plans"]["x"][0]["sub_plans"] == [traced["plan"]]


def test_swapped_dimensions_are_traced(tmp_path: Path) -> None:
    left, right = pair_of(tmp_path)
    value = torch.arange(24.0).reshape(2, 3, 4)
    left.write(0, 0, "out", value, "t a h")
    right.write(0, 0, "out", value.permute(0, 2, 1).reshape(2, 12), "t (h*a)")
    (tensor,) = [line for line in report_of(tmp_path) if line["type"] == "comparison_tensor"]
    assert tensor["traced_plan"]["plan"]["axis_aligner_plan"]["pattern"] == {"x": "t a h -> t (h a)", "y": None}
    assert tensor["diff"]["passed"]


def test_what_is_assumed_of_a_dump_is_logged(tmp_path: Path) -> None:
    for dump in pair_of(tmp_path):
        inside = Dump(dump.path / "dump_1", ONE)
        inside.path.mkdir()
        inside.write(0, 0, "out", torch.ones(3, 2), "t h")
    lines = report_of(tmp_path, "--token-aligner", "smart")
    logged = [(note["category"], note["message"]) for line in lines if line["type"] == "log" for note in line["infos"]]
    assert [name for name, _ in logged] == ["auto_descend", "auto_descend", "aux_tensors_missing"]
    assert "target_path" in logged[1][1]
    assert lines[-1]["passed"] == 1


def test_an_error_says_how_dims_are_given_without_another_recording(tmp_path: Path) -> None:
    for dump in pair_of(tmp_path, TWO):
        for rank in range(2):
            dump.write(0, rank, "out", torch.ones(3, 2), "t h")
    (error,) = [line for line in report_of(tmp_path) if line["type"] == "comparison_error"]
    assert error["traceback_str"].lstrip().startswith("Hint:")
    assert "--override-dims" in error["traceback_str"]
    assert error["exception_message"] in error["traceback_str"]


def test_ranks_that_no_dims_relate_are_skipped_with_a_warning(tmp_path: Path) -> None:
    left, right = pair_of(tmp_path, TWO)
    for dump, ranks in ((left, (0,)), (right, (0, 1))):
        dump.write(0, 0, "both", torch.ones(3, 2), "t h # tp:replicated")
        dump.write(0, 1, "both", torch.ones(3, 2), "t h # tp:replicated")
        for rank in ranks:
            dump.write(0, rank, "out", torch.full((3, 2), float(rank)))
    lines = report_of(tmp_path)
    (skipped,) = [line for line in lines if line["type"] == "comparison_skip"]
    assert (skipped["reason"], skipped["available_side"]) == ("target_load_failed", "baseline")
    assert [note["category"] for note in skipped["infos"]] == ["ranks-not-related"]
    assert {key: lines[-1][key] for key in ("passed", "skipped", "errored")} == {
        "passed": 1,
        "skipped": 1,
        "errored": 0,
    }
    assert compare(left.path, right.path).passed
    assert not compare(left.path, right.path, error={"ranks-not-related"}).passed
    assert not compare(left.path, right.path, allow_skipped_pattern="^$").passed


def test_ranks_that_no_dims_relate_fail_where_the_names_of_dimensions_differ(tmp_path: Path) -> None:
    """As in SGLang's comparator, whose skipped pair keeps the error of bringing both sides to one order."""
    left, right = pair_of(tmp_path, World("unknown", ({}, {})))
    left.write(0, 0, "out", torch.ones(3, 2), "t h")
    for rank in range(2):
        right.write(0, rank, "out", torch.ones(3, 2), "t d")
    lines = report_of(tmp_path, "--allow-skipped-pattern", ".*")
    (skipped,) = [line for line in lines if line["type"] == "comparison_skip"]
    assert (skipped["reason"], skipped["available_side"]) == ("target_load_failed", "baseline")
    assert skipped["available_bundle_info"]["dims"] == "t h"
    assert [note["category"] for note in skipped["errors"]] == ["axis_aligner_dim_mismatch"]
    assert (lines[-1]["failed"], lines[-1]["skipped"]) == (1, 0)
    assert not compare(left.path, right.path).passed


def test_a_zigzag_order_over_an_axis_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    """As in SGLang's comparator, and not a tensor whose ranks nothing relates."""
    left, right = pair_of(tmp_path, World("unknown", ({}, {})))
    for side in (left, right):
        for rank in (0, 1):
            side.write(0, rank, "x", torch.ones(4, 8), "t[cp:zigzag] h")
    (finding,) = compare(left.path, right.path).findings
    assert finding.category == "errored"
    assert "zigzag order over cp, which has one rank only" in str(finding)


def test_a_tensor_whose_ranks_are_related_in_one_step_alone_is_an_error(tmp_path: Path) -> None:
    for dump in pair_of(tmp_path, TWO):
        dump.write(0, 0, "out", torch.ones(3, 2))
        for rank in range(2):
            dump.write(1, rank, "out", torch.ones(3, 2))
    lines = report_of(tmp_path, "--preset", "sglang_megatron")
    (error,) = [line for line in lines if line["type"] == "comparison_error"]
    assert "step 1" in error["exception_message"]


@pytest.mark.parametrize("recorded", [False, True])
def test_rows_of_several_data_parallel_ranks_are_joined_where_their_tokens_are_known(
    tmp_path: Path, recorded: bool
) -> None:
    world = World("dp2", ({"dp": (0, 2)}, {"dp": (1, 2)}))
    for dump in pair_of(tmp_path, world):
        for rank in range(2):
            if recorded:
                dump.write(0, rank, "input_ids", torch.arange(3) + 3 * rank)
                dump.write(0, rank, "positions", torch.arange(3))
                dump.write(0, rank, "seq_lens", torch.tensor([3]))
                dump.write(0, rank, "rids", [f"request {rank}"])
            dump.write(0, rank, "out", torch.ones(3, 2), "t h")
    lines = report_of(tmp_path)
    (out,) = [line for line in lines if line.get("name") == "out"]
    if recorded:
        assert out["unified_shape"] == [6, 2]
        assert out["diff"]["passed"]
    else:
        assert out["exception_type"] == "AssertionError"
        assert "2 dp ranks of the baseline hold rows (0, 1)" in out["exception_message"]


def _packed(dump: Dump, lengths: list[int], hidden: torch.Tensor, *, zigzag: bool, positions: bool) -> None:
    """What Megatron's ranks record of packed sequences under context parallelism of size 2."""
    ids = torch.arange(1, sum(lengths) + 1) * 7
    cumulative = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    for rank in range(2):
        rows: list[int] = []
        start = 0
        for length in lengths:
            quarter, half = length // 4, length // 2
            own = [*range(rank * quarter, (rank + 1) * quarter), *range((3 - rank) * quarter, (4 - rank) * quarter)]
            rows += [start + row for row in (own if zigzag else range(rank * half, (rank + 1) * half))]
            start += length
        starts = torch.repeat_interleave(cumulative[:-1], torch.tensor(lengths))
        split = "t[cp:zigzag]" if zigzag else "t[cp]"
        dump.write(0, rank, "cu_seqlens_q", cumulative)
        dump.write(0, rank, "input_ids", ids[rows], None if zigzag or positions else split)
        if positions:
            dump.write(0, rank, "position_ids", (torch.arange(len(ids)) - starts)[rows])
        dump.write(0, rank, "out", hidden[rows], f"{split} h")


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("zigzag", [False, True])
def test_smart_joins_megatrons_packed_sequences_under_context_parallelism(
    tmp_path: Path, zigzag: bool, positions: bool
) -> None:
    lengths = [8, 4]
    hidden = torch.arange(24.0).reshape(12, 2)
    (tmp_path / "baseline").mkdir()
    (tmp_path / "target").mkdir()
    left = Dump(tmp_path / "baseline", ONE)
    left.write(0, 0, "input_ids", torch.arange(1, 13) * 7)
    left.write(0, 0, "positions", torch.cat([torch.arange(length) for length in lengths]))
    left.write(0, 0, "seq_lens", torch.tensor(lengths))
    left.write(0, 0, "out", hidden, "t h")
    two = World("cp2", ({"cp": (0, 2)}, {"cp": (1, 2)}), "megatron_parallel_info")
    _packed(Dump(tmp_path / "target", two), lengths, hidden, zigzag=zigzag, positions=positions)
    lines = report_of(tmp_path, "--token-aligner", "smart", "--preset", "raw", "--grouping-skip-keys", "rank", "step")
    (tensor,) = [line for line in lines if line["type"] == "comparison_tensor" and line["name"] == "out"]
    assert tensor["unified_shape"] == [12, 2]
    assert tensor["diff"]["passed"]
    assert tensor["diff"]["max_abs_diff"] == 0


def test_smart_reads_lengths_that_are_those_of_the_pass(tmp_path: Path) -> None:
    for dump in pair_of(tmp_path):
        for step, (ids, positions, lengths) in enumerate(
            [([5, 6, 7, 8], [0, 1, 2, 0], [3, 1]), ([9, 4], [3, 1], [1, 1])]
        ):
            dump.write(step, 0, "input_ids", torch.tensor(ids))
            dump.write(step, 0, "positions", torch.tensor(positions))
            dump.write(step, 0, "seq_lens", torch.tensor(lengths))
            dump.write(step, 0, "rids", ["a", "b"])
            dump.write(step, 0, "out", torch.tensor(ids, dtype=torch.float32)[:, None], "t h")
    lines = report_of(tmp_path, "--token-aligner", "smart", "--preset", "sglang_megatron", "--token-aligner", "smart")
    (tensor,) = [line for line in lines if line["type"] == "comparison_tensor" and line["name"] == "out"]
    assert tensor["unified_shape"] == [6, 1]
    assert lines[-1]["failed"] == 0


def test_joined_tokens_are_traced_to_their_steps_and_rows(tmp_path: Path) -> None:
    left, right = pair_of(tmp_path)
    for dump, passes in ((left, [([5, 6, 7, 8], [4])]), (right, [([5, 6], [2]), ([7, 8], [4])])):
        done = 0
        for step, (ids, lengths) in enumerate(passes):
            dump.write(step, 0, "input_ids", torch.tensor(ids))
            dump.write(step, 0, "positions", torch.arange(done, done + len(ids)))
            dump.write(step, 0, "seq_lens", torch.tensor(lengths))
            dump.write(step, 0, "rids", ["a"])
            dump.write(step, 0, "out", torch.tensor(ids, dtype=torch.float32)[:, None], "t h")
            done += len(ids)
    lines = report_of(tmp_path, "--token-aligner", "smart", "--preset", "sglang_megatron", "--token-aligner", "smart")
    (tensor,) = [line for line in lines if line["type"] == "comparison_tensor" and line["name"] == "out"]
    plan = tensor["traced_plan"]["plan"]["token_aligner_plan"]
    assert plan == {
        "locators": {
            "x": {"steps": [0, 0, 0, 0], "token_index_in_step": [0, 1, 2, 3]},
            "y": {"steps": [0, 0, 1, 1], "token_index_in_step": [0, 1, 0, 1]},
        },
        "layouts": {"x": "t", "y": "t"},
    }


@pytest.mark.parametrize("zigzag", [False, True])
@pytest.mark.parametrize("first", ["b s", "s b"])
def test_smart_joins_megatrons_padded_batches_under_context_parallelism(
    tmp_path: Path, zigzag: bool, first: str
) -> None:
    left, right = pair_of(tmp_path, World("cp2", ({"cp": (0, 2)}, {"cp": (1, 2)}), "megatron_parallel_info"))
    left = Dump(tmp_path / "baseline", World("single", ({},), "megatron_parallel_info"))
    ids = torch.arange(1, 17).reshape(2, 8) * 7
    hidden = torch.arange(48.0).reshape(2, 8, 3)

    def write(dump: Dump, rank: int, rows: list[int], split: str) -> None:
        dims = first.replace("s", f"s{split}")
        value = hidden[:, rows]
        dump.write(0, rank, "input_ids", ids[:, rows], f"b s{split}")
        dump.write(0, rank, "position_ids", torch.tensor(rows).expand(2, -1).contiguous())
        dump.write(0, rank, "out", value if first == "b s" else value.transpose(0, 1).contiguous(), f"{dims} h")

    write(left, 0, list(range(8)), "")
    for rank in range(2):
        natural = list(range(4 * rank, 4 * rank + 4))
        apart = [*range(2 * rank, 2 * rank + 2), *range(6 - 2 * rank, 8 - 2 * rank)]
        write(right, rank, apart if zigzag else natural, "[cp:zigzag]" if zigzag else "[cp]")
    lines = report_of(tmp_path, "--token-aligner", "smart", "--preset", "raw", "--grouping-skip-keys", "rank", "step")
    (tensor,) = [line for line in lines if line["type"] == "comparison_tensor" and line["name"] == "out"]
    assert tensor["diff"]["passed"]
    assert tensor["diff"]["max_abs_diff"] == 0
    assert tensor["traced_plan"]["plan"]["token_aligner_plan"]["layouts"] == {"x": "bs", "y": "bs"}


def test_a_report_in_sglangs_form_is_told_apart_by_what_reads_reports(halves: Path) -> None:
    from comparator.errors import ComparatorError
    from comparator.report.read import read_report

    report_of(halves, "--preset", "sglang_megatron")
    with pytest.raises(ComparatorError, match="--report-schema tensortap"):
        list(read_report(halves / "report.jsonl"))
    report_of(halves, "--preset", "sglang_megatron", schema="tensortap")
    assert list(read_report(halves / "report.jsonl"))


def test_pictures_go_into_no_folder_of_somebody_else(tmp_path: Path) -> None:
    from comparator.report.whole_files import own_folder

    own_folder(tmp_path / "pictures")
    own_folder(tmp_path / "pictures")
    assert (tmp_path / "pictures").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    for name in ("link", "shared"):
        with pytest.raises(OSError, match="belongs to somebody else"):
            own_folder(tmp_path / name)

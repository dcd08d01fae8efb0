"""A directory of SGLang's .pt files read as a run."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper import open_run
from dumper.layout import PADDING_ROW, SequenceSpan
from dumper.readers.sglang import facts
from dumper.readers.sglang.dump import SGLangDump
from dumper.readers.sglang.pt_files import FileNames, parse_file_name, tags_of, typed
from dumper.reading.protocol import RunError
from tests.dumper.convert.dumps import DumpWriter

TWO = {0: {"tp": (0, 2)}, 1: {"tp": (1, 2)}}
DATA_PARALLEL = {rank: {"tp": (rank, 2), "attn_dp": (rank, 2), "attn_tp": (0, 1)} for rank in range(2)}


def test_names_tags_dims_and_places(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path, TWO)
    value = torch.randn(4, 8).to(torch.bfloat16)
    dump.write(0, 0, "attn_output", value, dims="t h[tp]", layer_id=3)
    dump.write(0, 1, "attn_output", value, dims="t h[tp]", layer_id=3)
    dump.write(1, 1, "grad__attn_output", value.float(), dims="t h", layer_id=3, status="recompute")
    run = open_run(tmp_path)
    assert (run.ranks, run.steps, run.world_size, run.missing_ranks) == ((0, 1), (0, 1), 2, ())
    assert run.headers[1].parallel == {"tp": (1, 2)}
    (record,) = run.select(name="attn_output", step=0, rank=1, layer_id=3)
    assert (record.dims, record.dtype, record.shape, record.stream) == ("t h[tp]", "bfloat16", (4, 8), "value")
    assert record.array().tobytes() == value.view(torch.int16).numpy().tobytes()
    (gradient,) = run.select(name="attn_output", step=1)
    assert (gradient.stream, gradient.recompute, gradient.dtype) == ("grad", True, "float32")


def test_records_of_one_name_are_counted_in_order(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    for number in range(12):
        dump.write(0, 0, "x", torch.tensor([number]))
    records = open_run(tmp_path).records
    assert [(record.occurrence, int(record.array()[0])) for record in records] == [(n, n) for n in range(12)]


def test_passes_of_old_releases_are_steps_from_0(tmp_path: Path) -> None:
    for number in (1, 2):
        content = {"value": torch.tensor([number]), "meta": {"forward_pass_id": number}}
        torch.save(content, tmp_path / f"forward_pass_id={number}___rank=0___dump_index={number}___name=x.pt")
    run = open_run(tmp_path)
    assert run.steps == (0, 1)
    assert [int(record.array()[0]) for record in run.records] == [1, 2]
    assert not run.problems
    assert not any(record.tags for record in run.records)


def test_places_in_file_names_are_no_tags(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path, TWO)
    for rank in range(2):
        dump.write(0, rank, "x", torch.ones(2), layer_id=1, pp_rank=0, tp_rank=rank)
    assert [dict(record.tags) for record in open_run(tmp_path).records] == [{"layer_id": 1}] * 2


def test_neither_opening_nor_reading_imports_torch(tmp_path: Path) -> None:
    DumpWriter(tmp_path).write(0, 0, "x", torch.ones(2))
    code = f"""
import sys
from dumper import open_run
run = open_run({str(tmp_path)!r})
assert [record.name for record in run.records] == ["x"] and run.steps == (0,)
assert run.records[0].is_intact() and run.records[0].array().sum() == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_only_subdirectory_with_files_is_taken(tmp_path: Path) -> None:
    DumpWriter(tmp_path / "dump_1").write(0, 0, "x", torch.ones(2))
    assert open_run(tmp_path).path == tmp_path / "dump_1"
    DumpWriter(tmp_path / "dump_2").write(0, 0, "x", torch.ones(2))
    with pytest.raises(RunError, match=r"dump_1, dump_2"):
        open_run(tmp_path)


class _Callable:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, (str(Path(__file__).with_name("written_by_a_pickle")), "w"))  # type: ignore[return-value]


def test_nothing_is_unpickled_beyond_plain_values(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.write(0, 0, "good", {"a": [1, None, "x"], "t": torch.ones(2)})
    dump.write(0, 0, "evil", _Callable())
    (tmp_path / "step=0___rank=0___dump_index=7___name=old.pt").write_bytes(pickle.dumps(_Callable()))
    run = open_run(tmp_path)
    messages = sorted(problem.message for problem in run.problems)
    assert len(messages) == 2
    assert "name=evil" in messages[0]
    assert "name=old" in messages[1]
    assert not Path(__file__).with_name("written_by_a_pickle").exists()
    good, evil = run.select(name="good")[0], run.select(name="evil")[0]
    assert good.value["a"] == [1, None, "x"]
    assert np.array_equal(good.value["t"], np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"name=evil.*nothing but tensors and plain containers"):
        _ = evil.value


def test_damaged_and_foreign_files_are_problems(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.write(0, 0, "x", torch.ones(2))
    broken = dump.write(0, 0, "y", torch.ones(2))
    broken.write_bytes(broken.read_bytes()[:200])
    (tmp_path / "weights.pt").write_bytes(b"")
    (tmp_path / "step=zero___rank=0___dump_index=1___name=x.pt").write_bytes(b"")
    run = open_run(tmp_path)
    assert len(run.records) == 2
    kinds = [problem.kind for problem in run.problems]
    assert kinds == ["unreadable"] * 3
    assert run.select(name="x")[0].array().tolist() == [1, 1]


def test_a_directory_without_a_dump_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(RunError, match="named as SGLang's dumper names"):
        open_run(tmp_path)


def test_prefill_decode_and_cached_prefix(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.batch(0, 0, [5, 6, 7, 8, 9], [0, 1, 2, 0, 1], [3, 2], ["a", "b"])
    dump.batch(1, 0, [1, 2], [3, 2], [4, 3], ["a", "b"])
    dump.batch(2, 0, [4, 4, 4, 8], [2, 3, 4, 4], [5, 5], ["c", "a"])
    run = open_run(tmp_path)
    layouts = [run.layout(step, 0) for step in range(3)]
    assert [layout and layout.sequences for layout in layouts] == [
        (SequenceSpan("a", 0, 3), SequenceSpan("b", 0, 2)),
        (SequenceSpan("a", 3, 1), SequenceSpan("b", 2, 1)),
        (SequenceSpan("c", 2, 3), SequenceSpan("a", 4, 1)),
    ]
    assert [layout and layout.forward_mode for layout in layouts] == ["extend", "decode", "extend"]


def test_sequences_that_continue_each_others_positions_are_told_apart(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.batch(0, 0, [1, 2, 3], [0, 1, 2], [2, 3], ["a", "b"])
    layout = open_run(tmp_path).layout(0, 0)
    assert layout is not None
    assert layout.sequences == (SequenceSpan("a", 0, 2), SequenceSpan("b", 2, 1))


def test_rows_beyond_the_sequences_are_padding(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.batch(0, 0, [1, 2, 0, 0], [7, 3, 0, 0], [8, 4, 1, 1], ["a", "b"])
    layout = open_run(tmp_path).layout(0, 0)
    assert layout is not None
    assert layout.row_identities()[0].tolist() == [0, 1, PADDING_ROW, PADDING_ROW]


def test_contradicting_batches_give_no_layout(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.batch(0, 0, [1, 2, 3], [0, 1, 2], [9], ["a"])
    assert open_run(tmp_path).layout(0, 0) is None


@pytest.mark.parametrize("request_ids_known", [True, False])
def test_the_dummy_row_of_an_idle_data_parallel_rank_is_no_token(tmp_path: Path, request_ids_known: bool) -> None:
    dump = DumpWriter(tmp_path, DATA_PARALLEL)
    dump.batch(0, 0, [5, 6, 7], [0, 1, 2], [3], ["a"] if request_ids_known else None)
    dump.write(0, 1, "gathered", torch.zeros(3, 2))
    dump.batch(1, 0, [9], [3], [4], ["a"] if request_ids_known else None)
    dump.batch(1, 1, [0], [0], [1], [] if request_ids_known else None)
    run = open_run(tmp_path)
    prefill, decode = run.layout(0, 1), run.layout(1, 1)
    assert prefill is not None
    assert (prefill.rows, prefill.real_rows) == (0, 0)
    assert decode is not None
    assert (decode.rows, decode.real_rows) == (1, 0)
    shared = run.layout(1, 0)
    assert shared is not None
    assert shared.data_parallel is not None
    assert (shared.data_parallel.rows, shared.data_parallel.real_rows) == ((1, 1), (1, 0))
    assert prefill.data_parallel is not None
    assert prefill.data_parallel.rows == (3, 0)


def test_without_request_ids_a_slot_used_again_is_another_sequence(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    for step, (positions, length) in enumerate([([0, 1, 2], 3), ([3], 4), ([0, 1], 2)]):
        dump.batch(step, 0, [7] * len(positions), positions, [length], None)
    run = open_run(tmp_path)
    names = [layout.sequences[0].id for step in range(3) if (layout := run.layout(step, 0)) is not None]
    assert names[0] == names[1] != names[2]


def test_context_parallel_ranks_keep_their_positions(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path, {0: {"cp": (0, 2)}, 1: {"cp": (1, 2)}})
    for rank, positions in enumerate([[0, 3], [1, 2]]):
        dump.batch(0, rank, [10 + at for at in positions], positions, [4], ["a"])
    layout = open_run(tmp_path).layout(0, 0)
    assert layout is not None
    assert layout.context_parallel is not None
    assert layout.row_identities()[1].tolist() == [0, 3]
    assert (layout.context_parallel.ordering, layout.context_parallel.local) == ("zigzag", True)


def test_megatron_batches(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    dump.write(0, 0, "input_ids", torch.tensor([1, 2, 3, 4, 5, 0]))
    dump.write(0, 0, "cu_seqlens_q", torch.tensor([0, 2, 5]))
    dump.write(1, 0, "input_ids", torch.ones(2, 3, dtype=torch.int64))
    dump.write(1, 0, "qkv_format", "bshd")
    run = open_run(tmp_path)
    packed, padded = run.layout(0, 0), run.layout(1, 0)
    assert packed is not None
    assert [span.count for span in packed.sequences] == [2, 3]
    assert packed.rows == 6
    assert padded is not None
    assert padded.batch_shape == (2, 3)


@given(st.text(max_size=120))
def test_any_file_name_can_be_parsed(name: str) -> None:
    assert all(isinstance(part, str) for part in parse_file_name(name).values())


def test_files_that_are_read_together_are_those_that_are_read_by_themselves(tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    tensors = [torch.arange(6.0), torch.arange(6.0, 12.0), torch.ones(2, 3).T, torch.zeros(100_000), torch.ones(0)]
    paths = [dump.write(0, 0, "x", tensor) for tensor in tensors]
    run = open_run(tmp_path)
    assert isinstance(run, SGLangDump)
    assert [record.shape for record in run.records] == [tuple(tensor.shape) for tensor in tensors]
    torch.save({"value": torch.full((6,), 7.0), "meta": {}}, paths[0])
    run.read_together(run.records)
    assert [record._read is not None for record in run.records] == [False, True, True, False, False]
    torch.save({"value": torch.full((6,), 8.0), "meta": {}}, paths[1])
    for expected in (7.0, torch.arange(6.0, 12.0)), (7.0, 8.0):  # what was read with others is given once
        found = [record.array() for record in run.records if record.is_intact()]
        for one, wanted in zip(found, [*expected, *tensors[2:]], strict=True):
            np.testing.assert_array_equal(one, wanted)
    run.read_together(run.records[2:3])
    run.read_together([])
    assert all(record._read is None for record in run.records)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_tensors_of_one_shape_are_arrays_that_cannot_be_written_to(shape: tuple[int, ...], tmp_path: Path) -> None:
    dump = DumpWriter(tmp_path)
    tensors = [torch.full(shape, value, dtype=torch.bfloat16) for value in (1.0, 2.0, 3.0)]
    for tensor in tensors:
        dump.write(0, 0, "x", tensor)
    run = open_run(tmp_path)
    run.read_together(run.records)
    for record, tensor in zip(run.records, tensors, strict=True):
        assert record.is_intact()
        found = record.array()
        assert (type(found), found.shape, found.dtype.name) == (np.ndarray, shape, "bfloat16")
        assert not found.flags.writeable
        assert found.astype(np.float32).tolist() == tensor.tolist()


@pytest.fixture(scope="module")
def dump_of_seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tensors of 0 to 6 elements; the file of that with 3 is none of torch's."""
    folder = tmp_path_factory.mktemp("seven")
    dump = DumpWriter(folder)
    for number in range(7):
        path = dump.write(0, 0, "x", torch.ones(number))
        if number == 3:
            Path(path).write_bytes(b"something else")
    return folder


@given(begun=st.booleans(), order=st.permutations(range(7)), at_once=st.integers(1, 9))
def test_facts_that_are_read_ahead_are_those_of_each_file(
    dump_of_seven: Path, begun: bool, order: list[int], at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(facts, "MOST_AT_ONCE", at_once)
        patched.setattr(facts, "WORTH_A_THREAD", 1)
        run = open_run(dump_of_seven)
        if begun:
            run.read_ahead()
        for number in order:
            record = run.records[number]
            assert (record.error is not None) if number == 3 else (record.shape == (number,))
        patched.setattr(facts.pt_format, "heads", lambda paths: pytest.fail("what is known was read again"))
        run.read_ahead()
        assert [record.shape for record in run.records if record.error is None] == [(n,) for n in (0, 1, 2, 4, 5, 6)]


PARTS = st.sampled_from(
    [
        "step=0",
        "step=1",
        "rank=1",
        "dump_index=2",
        "dump_index=",
        "name=a=b",
        "layer_id=3",
        "forward_pass_id=4",
        "x",
        "",
    ]
)


@given(st.lists(st.lists(PARTS, max_size=6).map(lambda parts: "___".join(parts) + ".pt"), max_size=8))
def test_names_that_are_parsed_together_are_parsed_as_each(names: list[str]) -> None:
    together = FileNames()
    for name in [*names, *names]:
        parts, tags = together.parse(name)
        expected = parse_file_name(name)
        assert list(parts.items()) == list(expected.items())
        assert list(tags.items()) == list(tags_of(expected).items())


@given(st.from_regex(r"-?[0-9]{1,30}|True|False|None|[a-z0-9_.²٣ -]{0,12}", fullmatch=True))
def test_what_a_file_name_says_is_the_value_that_was_written(text: str) -> None:
    assert str(typed(text)) == text


@settings(max_examples=40)
@given(st.binary(max_size=400), st.integers(0, 400), st.booleans())
def test_damage_anywhere_in_a_file_is_a_problem_and_no_crash(data: bytes, at: int, insert: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = DumpWriter(Path(folder)).write(0, 0, "x", torch.ones(4), dims="t")
        content = bytearray(path.read_bytes())
        content[at : at if insert else at + len(data)] = data
        path.write_bytes(content)
        run = open_run(folder)
        (record,) = run.records
        readable = not run.problems
        assert (record.kind == "tensor") <= readable

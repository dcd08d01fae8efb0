"""Tensors that are larger than the memory that may be taken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from comparator import Options, compare
from comparator.align import aligned as aligning
from comparator.align.rearrange import joined, slice_of
from comparator.align.unshard import sum_partials, undo_zigzag
from comparator.cli import main
from comparator.measure import memory
from comparator.options import TokenMode
from dumper import open_run
from dumper.format import frames
from dumper.recording.recorder import Recorder
from tensortap import lazy_rows
from tensortap.lazy_rows import Array, is_lazy, lazy_bytes, pieces, stacked
from testbed.large_runs import write_large_run

PEAK = """
import sys
from comparator.cli import main
code = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of runs with one tensor of 256 MiB each, of which a disk holds 2 MiB."""
    folder = tmp_path_factory.mktemp("large")
    write_large_run(folder / "a", 65536, 2048, filled=1 / 128)
    write_large_run(folder / "b", 65536, 2048, noise=1e-3, filled=1 / 128)
    write_large_run(folder / "c", 65536, 2048, noise=0.5, filled=1 / 128)
    return folder


@pytest.mark.parametrize(("target", "code"), [("b", 0), ("c", 1)])
def test_a_pair_of_512_mebibytes_is_compared_within_128(large: Path, target: str, code: int) -> None:
    program = [sys.executable, "-c", PEAK, str(large / "a"), str(large / target), "--jobs", "1", "--memory", "128M"]
    done = subprocess.run(
        [*program, "--output-format", "json"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stderr
    *lines, peak = done.stdout.splitlines()
    finding = next(one for one in map(json.loads, lines) if "diff" in one)
    assert finding["diff"]["max_abs_diff"] > 0
    # The file pages that are mapped count; with all of them it would be 512 MiB more.
    assert int(peak.split()[1]) < 128 << 10


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("summed", {"rows": 16384, "channels": 1024, "ranks": 4, "dims": "t h[tp:partial]"}),
        ("side-by-side", {"rows": 32768, "channels": 512, "ranks": 4, "dims": "t h[tp]"}),
        ("many", {"rows": 4096, "channels": 2048, "steps": 8}),
    ],
)
def test_tensors_that_are_put_together_and_families_of_many_within_128(
    tmp_path: Path, name: str, shape: dict[str, Any]
) -> None:
    """256 MiB of four ranks, and 256 MiB of eight steps, each of which would fit."""
    for side, noise in (("a", 0.0), ("b", 0.5)):
        write_large_run(tmp_path / name / side, **shape, noise=noise, filled=1 / 128)
    program = [sys.executable, "-c", PEAK, *(str(tmp_path / name / side) for side in "ab")]
    done = subprocess.run(
        [*program, "--jobs", "1", "--memory", "128M"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert int(done.stdout.splitlines()[-1].split()[1]) < 128 << 10


def test_memory_for_less_than_a_row_names_what_is_enough(
    large: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "memory_taken", lambda: 50 << 20)
    arguments = [str(large / "a"), str(large / "b"), "--jobs", "1", "--memory"]
    assert main([*arguments, "64M"]) == 2
    found = re.search(r"hidden takes .*\(--memory (\d+)M --jobs 1\)", capsys.readouterr().err)
    assert found is not None
    assert main([*arguments, f"{int(found[1]) - 1}M"]) == 2
    assert main([*arguments, f"{found[1]}M"]) == 0


@pytest.mark.parametrize("text", ["0", "a lot", "-1G", "5X"])
def test_what_is_no_size_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["a", "b", f"--memory={text}"])
    assert ended.value.code == 2
    assert "write 512M or 2G" in capsys.readouterr().err


def _reports(baseline: Path, target: Path, options: Options, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What is found with all in memory, and with little of it."""
    monkeypatch.setattr(memory, "memory_taken", lambda: 0)
    monkeypatch.setattr(lazy_rows, "PIECE", 10_000)
    monkeypatch.setattr(memory, "PIECE", 10_000)
    monkeypatch.setattr(memory, "_PER_SAMPLE", 0)
    monkeypatch.setattr(frames, "LARGEST_PAYLOAD", 24_000)
    found = []
    for most in (1 << 40, 1 << 20):
        report = compare(open_run(baseline), open_run(target), options=replace(options, memory=most))
        found.append([json.loads(one.model_dump_json()) for one in report.findings])
    return found


def _close(left: object, right: object) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_close(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_close, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return bool(np.isclose(left, right, rtol=1e-6, atol=1e-9, equal_nan=True))
    return left == right


@pytest.mark.parametrize("equal_nan", [False, True])
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("int64", "int64")])
def test_it_is_found_alike_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtypes: tuple[str, str], equal_nan: bool
) -> None:
    rng = np.random.default_rng(1)
    paths = []
    for side, dtype in zip("ab", dtypes, strict=True):
        values = 100 * np.random.default_rng(0).standard_normal((600, 7, 100)) + (side == "b") * rng.standard_normal(1)
        values[5, 1, 2] = np.nan if dtype != "int64" else 7
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=side, control=False)
        for step in range(2):
            recorder.step()
            recorder.dump("hidden", torch.from_numpy(values[: 200 + step]).to(getattr(torch, dtype)), dims="t a h")
        recorder.close()
        paths.append(tmp_path / side)
    at_once, lazily = _reports(paths[0], paths[1], Options(equal_nan=equal_nan, bitwise=False), monkeypatch)
    assert at_once
    assert _close(at_once, lazily)


@pytest.mark.parametrize(
    ("dims", "aligner"),
    [
        ("t h[tp]", "per_step"),
        ("t h[tp:partial]", "smart"),
        ("t[tp] h", "per_step"),
        ("t h # tp:replicated", "smart"),
        ("t h[tp:partial]", "concat_steps"),
    ],
)
def test_shards_are_put_together_alike_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: str, aligner: TokenMode
) -> None:
    rows = 1200 if dims == "t[tp] h" else 300
    for side, noise in (("a", 0.0), ("b", 1e-3)):
        write_large_run(tmp_path / side, 300, 100, noise=noise, ranks=4, steps=2, dims=dims)
    lazily: list[object] = []
    true = aligning.load_lazily
    monkeypatch.setattr(aligning, "load_lazily", lambda entry: lazily.append(entry) or true(entry))
    options = Options(token_aligner=aligner, bitwise=False)
    at_once, in_rows = _reports(tmp_path / "a", tmp_path / "b", options, monkeypatch)
    assert len(lazily) >= 16
    assert at_once
    assert at_once[0]["target"]["shape"][0] in (rows, 2 * rows)
    assert _close(at_once, in_rows)


@pytest.mark.parametrize("left_out", ["", "attn_output"])
def test_sums_are_held_against_their_operands_alike_with_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """A fault in a sum, of which all operands were recorded, or one is the difference of sum and other operand."""
    shape, dims = (120, 700), "t h"
    for side in "ab":
        rng = np.random.default_rng(0)
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=side, control=False)
        recorder.step()
        stream = rng.standard_normal(shape)
        for layer in range(3):
            attention, mlp = rng.standard_normal((2, *shape))
            values = {"layer_input": stream, "attn_output": attention, "pre_mlp_residual": stream + attention}
            if side == "b" and layer == 1:
                values["pre_mlp_residual"] *= 1.01
            values["mlp_output"] = mlp
            for name, value in values.items():
                if name != left_out:
                    recorder.dump(name, torch.from_numpy(value).bfloat16(), dims=dims, layer_id=layer)
            stream = values["pre_mlp_residual"] + mlp
        recorder.dump("final_norm_output", torch.from_numpy(stream / np.std(stream)).bfloat16(), dims=dims)
        recorder.close()
    at_once, lazily = _reports(tmp_path / "a", tmp_path / "b", Options(bitwise=False), monkeypatch)
    judged = {(one["name"], one["tags"].get("layer_id")): one["analysis"]["judged"] for one in at_once}
    assert [key for key, verdict in judged.items() if verdict == "introduced-here"] == [("pre_mlp_residual", "1")]
    assert _close(at_once, lazily)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_operations_on_rows_are_those_on_whole_arrays(data: st.DataObject) -> None:
    whole = [np.arange(one, one + 16 * 3 * 2, dtype=np.int16).reshape(16, 3, 2) for one in (0, 100)]
    lazy = [stacked([one[:5], one[5:]]) for one in whole]
    dimension = data.draw(st.integers(0, 1))
    lengths = (4, 8)
    for same, found in (
        (joined(whole, dimension), joined(lazy, dimension)),
        (joined(whole, dimension), joined([whole[0], lazy[1]], dimension)),
        (slice_of(whole[0], dimension, 1, 3), slice_of(lazy[0], dimension, 1, 3)),
        (sum_partials(whole), sum_partials(lazy)),
        (undo_zigzag(whole[0], 0, 2, lengths), undo_zigzag(lazy[0], 0, 2, lengths)),
    ):
        assert is_lazy(found)
        assert (found.shape, found.dtype) == (same.shape, same.dtype)
        start, stop = sorted(data.draw(st.tuples(st.integers(0, len(same)), st.integers(0, len(same)))))
        np.testing.assert_array_equal(found[start:stop], same[start:stop])
        assert found.touched >= found.nbytes
        assert [one.stop for one in pieces(found, same)][-1] == len(same)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 60), st.data())
def test_rows_are_those_of_the_whole_array(lengths: list[int], cut: int, data: st.DataObject) -> None:
    rows = sum(lengths)
    whole = np.arange(rows * 6, dtype=np.int16).reshape(rows, 2, 3)
    raw = memoryview(whole.tobytes())
    released: list[tuple[int, int, int]] = []

    def lazy(array: Array) -> Array:
        parts = [raw[start : start + 2 * cut] for start in range(0, len(raw), 2 * cut)]
        return lazy_bytes(parts, array.dtype, array.shape, lambda *place: released.append(place))

    starts = np.cumsum([0, *lengths])
    parts = [whole[first:end] for first, end in pairwise(starts)]
    for found in (lazy(whole), stacked(parts)):
        assert is_lazy(found)
        assert (found.shape, found.nbytes, len(found)) == (whole.shape, whole.nbytes, rows)
        start, stop = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
        chosen = np.array(data.draw(st.lists(st.integers(0, rows - 1))), np.int64)
        for some, same in ((found[start:stop], whole[start:stop]), (found[chosen], whole[chosen])):
            np.testing.assert_array_equal(some, same)
        assert found[rows - 1, 1, 2] == whole[-1, 1, 2]
        np.testing.assert_array_equal(found.rows(start, stop)[...], whole[start:stop])
        np.testing.assert_array_equal(found.take(chosen)[...], whole[chosen])
        np.testing.assert_array_equal(found.reshape(rows, 6)[...], whole.reshape(rows, 6))
        np.testing.assert_array_equal(found.astype(np.dtype(np.float32))[...], whole.astype(np.float32))
        seen = list(pieces(found, whole))
        assert [one.start for one in seen] == [0, *(one.stop for one in seen[:-1])]
        assert seen[-1].stop == rows
    assert sum(end - first for _, first, end in released) >= whole.nbytes


def test_an_array_that_is_not_in_memory_is_not_made_whole_by_mistake() -> None:
    rows = stacked([np.zeros((2, 3)), np.zeros((1, 3))])
    for ask in (lambda: np.asarray(rows), lambda: rows.reshape(-1)):
        with pytest.raises(MemoryError, match=r"at once|another order"):
            ask()


def test_a_record_in_several_payloads_is_read_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LARGEST_PAYLOAD", 1 << 20)
    path = write_large_run(tmp_path / "a", 3000, 600, filled=1 / 16)
    record = next(iter(open_run(path).select(name="hidden")))
    assert record.is_intact()
    rows = record.lazy_array()
    np.testing.assert_array_equal(rows[...].view(np.uint16), record.array().view(np.uint16))
    assert torch.from_numpy(rows[1500].view(np.int16).copy()).shape == (600,)

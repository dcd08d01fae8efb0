"""Runs and records for people: indexes, two runs side by side, JSON, narrow terminals, notebooks, completion."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dumper.cli import main
from dumper.reading.distribution import drawn_distribution
from dumper.reading.indexing import IndexingError, parse_index, split_name
from dumper.reading.listing import tables
from dumper.reading.open import open_run
from dumper.reading.record_lines import as_json, headline
from dumper.recording.recorder import Recorder
from tests.dumper.recording.conftest import Recording

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)
EVIL = "<script>alert(1)</script>&\x1b[31m\n\u202e"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that differ in one element of ``x``, in ``plain``, and in what they have."""
    paths = []
    for number in range(2):
        recording = Recording(tmp_path_factory.mktemp("run"))
        recorder = recording.start()
        changed = MATRIX.copy()
        changed[1, 2] += number / 2
        recorder.dump("x", changed, dims="t h[tp]", layer_id=0)
        recorder.dump("same", MATRIX)
        recorder.dump("layers[0]", MATRIX[0])
        recorder.dump("plain", [1, [2, 3], float("nan"), number])
        recorder.dump("stats", MATRIX, level="stats")
        recorder.dump("hash", MATRIX, level="hash")
        recorder.dump("special", np.array([np.nan, np.inf, -np.inf, 1]))
        recorder.dump(f"only{number}", MATRIX)
        recorder.dump("a_rather_long_name.of_a_module.with_a_path", MATRIX, dims="tokens hidden[tp] # ep:replicated")
        recording.close()
        paths.append(recording.path)
    return paths[0], paths[1]


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x[0,:2]", "[0. 1.]"),
        ("x[-1, 1:4:2]", "[ 9. 11.]"),
        ("x[..., 3]", "[ 3.  7. 11.]"),
        ("x[::-2,0]", "[8. 0.]"),
        ("x[1,1]", "5."),
        ("layers[0]", "[0. 1. 2. 3.]"),
        ("layers[0][2:]", "[2. 3.]"),
        ("plain[1,0]", "2"),
    ],
)
def test_a_part_of_a_value(runs: tuple[Path, Path], name: str, expected: str, capsys: Any) -> None:
    assert show(capsys, runs[0], name).splitlines()[1].strip() == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x[3]", "3 is outside dimension 0 of the shape [3, 4]"),
        ("x[0,0,0]", "[0,0,0] has 3 indexes, and the shape is [3, 4]"),
        ("plain[9]", "9 is outside a list of 4"),
    ],
)
def test_a_part_that_is_not_there(runs: tuple[Path, Path], name: str, words: str, capsys: Any) -> None:
    assert words in show(capsys, runs[0], name)


@pytest.mark.parametrize("name", ["x[a]", "x[__import__('os')]", "x[1:2:0]", "x[]", "x[1:2:3:4]", "x[...,...]", "y[0]"])
def test_an_index_that_is_none(runs: tuple[Path, Path], name: str, capsys: Any) -> None:
    assert main(["show", str(runs[0]), name]) == 2
    told = capsys.readouterr().err
    assert told.startswith("dumper show: ")
    assert "Traceback" not in told


@given(st.text(st.sampled_from("0123456789:,. -+[]x"), max_size=30) | st.text(max_size=30))
def test_any_text_as_an_index(text: str) -> None:
    with contextlib.suppress(IndexingError):
        parse_index(text).of_array(MATRIX)
    with contextlib.suppress(IndexingError):
        split_name(text, {"x"})


def test_an_index_that_was_not_closed_is_no_name() -> None:
    with pytest.raises(IndexingError, match=r"no index; expected for example \[0,:5\]"):
        split_name("x[0,9:", {"x"})
    assert split_name("y[0,9:", {"x"}) == ("y[0,9:", None)


SLICES = st.slices(3) | st.integers(-3, 2)


@given(SLICES, st.slices(4))
def test_indexes_mean_what_they_mean_in_numpy(first: Any, second: Any) -> None:
    def text(part: Any) -> str:
        if not isinstance(part, slice):
            return str(part)
        return ":".join("" if bound is None else str(bound) for bound in (part.start, part.stop, part.step or 1))

    index = parse_index(f"[{text(first)}, {text(second)}]")
    np.testing.assert_array_equal(index.of_array(MATRIX), MATRIX[first, second])


def test_two_runs_side_by_side(runs: tuple[Path, Path], capsys: Any) -> None:
    shown = show(capsys, *runs)
    assert "    [[ 0.  1.  2.  3.]   │  [[ 0.   1.   2.   3. ]" in shown
    assert "1 of 12 elements differ, the first at [1, 2], largest difference 0.5" in shown
    assert "equal in every bit" in shown
    assert "statistics are equal" in shown
    assert "fingerprints are equal" in shown
    assert "only in the first run" in shown
    assert "only in the second run" in shown
    assert "equal in every bit" in show(capsys, *runs, "x[0]")
    plain = show(capsys, *runs, "plain")
    assert plain.splitlines()[-1].strip() == "differ"


def test_two_runs_without_room(runs: tuple[Path, Path], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    shown = show(capsys, *runs, "x")
    assert "    first:\n      [[ 0.  1.  2.  3.]" in shown
    assert all(len(line) <= 50 for line in shown.splitlines()[1:-1])


def test_json(runs: tuple[Path, Path], capsys: Any) -> None:
    def read(*arguments: object) -> dict[str, dict[str, Any]]:
        lines = show(capsys, *arguments, "--output", "json").splitlines()
        records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
        return {(record.get("first") or record.get("second") or record)["name"]: record for record in records}

    records = read(runs[0])
    assert records["same"]["values"] == MATRIX.tolist()
    assert records["special"]["values"] == ["NaN", "Infinity", "-Infinity", 1]
    assert records["plain"]["value"] == [1, [2, 3], "NaN", 0]
    assert records["stats"]["statistics"]["max"] == 11
    assert len(records["hash"]["fingerprint"]) == 32
    assert read(runs[0], "x[1,1:3]")["x"]["values"] == [5, 6]
    assert read(runs[0], "x", "--elements", "4")["x"]["values"] is None
    assert "outside" in read(runs[0], "x[7]")["x"]["not_shown"]
    both = read(*runs, "x[1]", "only0")
    assert both["x"]["difference"].startswith("1 of 4 elements differ")
    assert (both["x"]["first"]["values"][2], both["x"]["second"]["values"][2]) == (6, 6.5)
    assert both["only0"]["second"] is None

    assert main(["ls", str(runs[0]), "--output", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["records"], summary["world_size"], summary["losses"]) == (9, 1, 0)
    for flags in (["--records", "--output", "json"], ["--json"]):
        assert main(["ls", str(runs[0]), *flags]) == 0
        assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 9


@pytest.mark.parametrize("columns", ["50", "80", "200"])
def test_tables_at_any_width(
    runs: tuple[Path, Path], columns: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["ls", str(runs[0])]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= int(columns) for line in lines)
    # Nothing is folded to where it cannot be read: each name and each dims is in one piece.
    assert any("a_rather_long_name.of_a_module.with_a_path" in line for line in lines)
    assert any("t h[tp]" in line for line in lines)


def test_what_objects_say_of_themselves(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    assert repr(Recorder()).startswith("<dumper: off")
    recorder = recording.start()
    recorder.dump(EVIL, np.arange(3), layer_id=1)
    recorder.flush()
    told = repr(recorder)
    assert told == f"<dumper: recording into {recording.path}, step 0, 1 records, 0 lost>"
    recorder.configure(enable=False)
    assert repr(recorder).startswith(f"<dumper: off; {recording.path} ")
    run = recording.read()
    assert repr(run) == f"<Run {recording.path}: 1 of 1 ranks, 1 steps (0), 1 records, 0 lost>"
    record = run.records[0]
    assert repr(record).endswith("step=0 rank=0 layer_id=1 int64 [3]>")
    assert repr(record).isprintable()
    for shown in (run._repr_html_(), record._repr_html_()):  # type: ignore[attr-defined]
        assert "<script>" not in shown
        assert "&lt;script&gt;" in shown
        assert "\x1b" not in shown
    assert "[0 1 2]" in record._repr_html_()  # type: ignore[attr-defined]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    file = tmp_path / "script"
    file.write_text(capsys.readouterr().out)
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(file)], check=True)
    if shell != "bash":
        assert "strict-taps" in file.read_text()
        return
    for words, expected in (
        ("sh", ["show"]),
        ("show RUN --el", ["--elements"]),
        ("show RUN --output j", ["json"]),
        ("ls RUN --str", ["--strict-taps"]),
        ("ctl RUN st", ["status", "steps"]),
        ("ctl RUN status --js", ["--json"]),
    ):
        count = len(words.split())
        ask = f"cd {tmp_path}; source {file}; COMP_WORDS=(dumper {words}); COMP_CWORD={count}; _dumper_complete; "
        done = subprocess.run(
            ["bash", "-c", ask + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == expected, words
    # Open the run once more: completion has run nothing.
    assert not list(tmp_path.glob("rank-*"))


def test_sglang_dumps_say_what_they_are(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.save({"value": torch.ones(2), "meta": {}}, tmp_path / "step=0___rank=0___dump_index=1___name=x.pt")
    run: Any = open_run(tmp_path)
    assert repr(run).startswith(f"<SGLangDump {tmp_path}: 1 of 1 ranks")
    assert "x" in run._repr_html_()
    assert "[1. 1.]" in run.records[0]._repr_html_()


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([0.0, 1.0] * 50, ["0 |█      █| 1", "min 0, max 1, mean 0.5, std 0.5, 50 zero"]),
        (np.r_[np.arange(8.0), np.nan, np.inf], ["0.007 |████████| 6.99",
         "min 0, max 7, mean 3.5, std 2.29, 1 zero, 1 NaN, 1 infinite"]),
        ([3.0] * 9, ["min 3, max 3, mean 3, std 0"]),
        ([np.nan] * 9, ["no finite element, 9 NaN"]),
        ([1e308, -1e308] * 4, ["-1e+308 |█      █| 1e+308", "min -1e+308, max 1e+308, mean 0, std 1e+308"]),
        ([], [""]),
        ([1j] * 9, [""]),
    ],
)  # fmt: skip
def test_distributions(values: Any, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert drawn_distribution(np.array(values), 0).split("\n") == lines


def test_a_distribution_from_a_sample_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    drawn = drawn_distribution(np.broadcast_to(np.float32([[1], [2]]), (2, 1 << 20)), 200)
    assert drawn.isascii()
    assert "from a sample of 1048576 of 2097152 elements" in drawn


@given(
    npst.arrays(st.sampled_from(["f2", "f4", "f8", "i8", "u8", "?"]), npst.array_shapes(max_dims=2)),
    st.integers(0, 200),
)
def test_every_tensor_has_a_distribution(array: Any, width: int) -> None:
    with np.errstate(all="ignore"):
        lines = drawn_distribution(array, width).split("\n")
    assert lines[-1].startswith(("min ", "no finite element"))
    assert len(lines) <= 2


def test_the_distribution_of_what_is_shortened(runs: tuple[Path, Path], capsys: Any) -> None:
    long = show(capsys, runs[0], "x", "--elements", "4").splitlines()
    assert long[-1].strip() == "min 0, max 11, mean 5.5, std 3.45, 1 zero"
    assert "min" not in show(capsys, runs[0], "x")
    assert "min 0, max 11" in show(capsys, runs[0], runs[1], "x", "--elements", "4")


def test_records_that_are_alike_are_summed_up_as_one_by_one(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    recorder = recording.start()
    for step in range(3):
        with recorder.step():
            for layer in (1, 0):
                recorder.dump("x", MATRIX[: step + 1], dims="t h", layer_id=layer)
                recorder.dump("x", MATRIX[: step + 1], dims="t h", layer_id=layer)
            recorder.dump("y", [step])
    recorder.dump("y", MATRIX)
    recording.close()
    run = open_run(recording.path)
    assert [table.rows for table in tables(run)] == [table.rows for table in tables(run, run.records)]
    columns = run.columns()
    assert len(columns.kind) == len(run.records) == 16
    assert len(columns.kinds) < 10
    for record, kind, rank, step, occurrence in zip(
        run.records, columns.kind, columns.rank, columns.step, columns.occurrence, strict=True
    ):
        like = columns.kinds[kind]
        assert (record.name, record.tags, record.shape) == (like.name, like.tags, like.shape)
        assert (record.rank, -1 if record.step is None else record.step, record.occurrence) == (rank, step, occurrence)


@pytest.mark.parametrize(
    ("flags", "fits"),
    [
        ([], lambda record: True),
        (["--step", "1"], lambda record: record.step == 1),
        (["--rank", "1"], lambda record: False),
        (["--filter", "layer_id == 1"], lambda record: record.tags.get("layer_id") == 1),
        (
            ["--filter", "step == 0 and layer_id == 0"],
            lambda record: record.step == 0 and record.tags == {"layer_id": 0},
        ),
        (["--filter", "not step"], lambda record: not record.step),
        (["--step", "0", "--filter", "name == 'x'"], lambda record: record.step == 0 and record.name == "x"),
    ],
)
def test_a_line_for_each_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], fits: Callable[[Any], bool]
) -> None:
    """What records share is written once; the lines are those of single records."""
    recording = Recording(tmp_path)
    recorder = recording.start(outside_steps="record")
    recorder.install_taps("m", ({"id": "m.step", "name": "", "file": "m.py", "line": 1, "kind": "step"},), {})
    recorder.dump("x", MATRIX, layer_id=0)
    for _ in range(2):
        with recorder.step():
            for layer in (0, 1, 0):
                recorder.dump("x", MATRIX, dims="t h", layer_id=layer)
            recorder.dump(EVIL, [1], **{"note": EVIL, "share": 0.5, "last": None})
    recording.close()
    expected = [record for record in open_run(recording.path).records if fits(record)]
    assert main(["ls", str(recording.path), "--json", *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [json.dumps(as_json(record)) for record in expected]
    assert main(["ls", str(recording.path), "--records", *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [headline(record) for record in expected]
    if not flags:
        assert [headline(record) for record in expected[:4]] == [
            "x step=- rank=0 layer_id=0 float32 [3, 4]",
            "x step=0 rank=0 layer_id=0 float32 [3, 4] dims='t h'",
            "x step=0 rank=0 layer_id=1 float32 [3, 4] dims='t h'",
            "x step=0 rank=0 layer_id=0 occurrence=1 float32 [3, 4] dims='t h'",
        ]

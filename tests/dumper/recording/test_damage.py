"""Whatever is in a file: what is damaged is found, what is not is read, and nothing crashes or hangs."""

from __future__ import annotations

import contextlib
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper import Run, open_run
from dumper.cli import main
from dumper.format import frames
from dumper.layout import SequenceSpan, TokenLayout
from dumper.readers.streams.repair import repair_run
from dumper.readers.streams.verify import Report, verify_data, verify_run
from dumper.reading.protocol import Record
from tests.dumper.recording.conftest import Recording

FILE = "rank-00000.msgpack"


def _record(folder: Path) -> Path:
    """A small run with everything in it that a run can hold."""
    recorder = Recording(folder).start()
    tap = {"id": "m.f#1:attn", "name": "attn", "kind": "dump", "target": "m.f", "file": "m.py", "line": 3}
    (installed,) = recorder.install_taps("m", (tap,), {"paths": ["a.yaml"], "sha256": "0", "texts": {"a.yaml": "x"}})
    for step in range(3):
        layout = TokenLayout("extend", (SequenceSpan("r", 0, 4),), 5, np.arange(5, dtype=np.int64))
        recorder.step(layout=layout)
        installed.record(torch.randn(5, 8).to(torch.bfloat16), "t h", layer_id=step)
        recorder.dump("value", {"a": [1, None]})
        recorder.dump("stats", torch.randn(100), level="stats")
        recorder.dump("hash", torch.randn(100), level="hash")
    recorder.close()
    return folder / "run"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _record(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def _content(record: Record) -> object:
    if record.kind == "value":
        return record.value
    if record.level == "full":
        return record.array().tobytes()
    return record.fingerprint if record.level == "hash" else record.statistics


def _read_everything(path: Path) -> Run:
    """Use all of the interface; only the errors that it documents may come."""
    run = open_run(path)
    _ = (run.headers, run.taps, run.losses, run.problems, run.world_size, run.missing_ranks, run.to_polars())
    for step in run.steps:
        for rank in run.ranks:
            with contextlib.suppress(frames.FormatError):
                run.layout(step, rank)
    for record in run.records:
        with contextlib.suppress(frames.FormatError, ValueError):
            _content(record)
        record.is_intact()
    return run


def test_an_undamaged_run_is_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out == "1 files, 12 records: every checksum is right\n"


def test_thousands_of_flipped_bits_are_all_found(pristine: Path) -> None:
    data = bytearray((pristine / FILE).read_bytes())
    generator = random.Random(1)
    # Every byte of the file.
    assert len(data) > 3000
    for position in range(len(data)):
        flip = 1 << generator.randrange(8)
        data[position] ^= flip
        report = Report()
        verify_data(FILE, bytes(data), report)
        assert not report.intact, position
        data[position] ^= flip
    report = Report()
    assert verify_data(FILE, bytes(data), report) == 12
    assert report.intact


def test_one_damaged_record_costs_no_other(run: Path) -> None:
    before = {(r.name, r.step): _content(r) for r in open_run(run).records}
    victim = open_run(run).records[5]
    offset = int(victim.source.partition("@")[2])
    file = run / FILE
    data = bytearray(file.read_bytes())
    # The header of the frame, so that its length is not known any more.
    data[offset] ^= 0xFF
    # And the footer, so that the index does not help.
    data[-1] ^= 0xFF
    file.write_bytes(data)
    damaged = open_run(run)
    after = {(r.name, r.step): _content(r) for r in damaged.records}
    assert after == {key: value for key, value in before.items() if key != (victim.name, victim.step)}
    assert "corrupted" in {problem.kind for problem in damaged.problems}


def test_a_truncated_file_opens_and_says_so(run: Path) -> None:
    file = run / FILE
    data = file.read_bytes()
    records = [(int(r.source.partition("@")[2]), r.name, r.step) for r in open_run(run).records]
    generator = random.Random(2)
    for _ in range(30):
        length = generator.randrange(len(data))
        file.write_bytes(data[:length])
        cut = _read_everything(run)
        names = [(r.name, r.step) for r in cut.records]
        assert names == [(name, step) for _, name, step in records][: len(names)]
        # All that lies before the cut, but for the record that it cuts.
        assert len(names) >= sum(offset < length for offset, _, _ in records) - 1
        assert {"unclosed", "empty"} & {problem.kind for problem in cut.problems}
        # The counts know how many there were.
        assert cut.losses == len(records) - len(names)
        assert verify_run(run).intact == (len(names) == len(records))


def test_repair_completes_a_truncated_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / FILE
    before = [(r.name, r.step, _content(r)) for r in open_run(run).records]
    file.write_bytes(file.read_bytes()[: int(open_run(run).records[8].source.partition("@")[2]) + 10])
    assert main(["repair", str(run)]) == 0
    assert "8 records kept, index written; 1 damaged parts left out" in capsys.readouterr().out
    repaired = open_run(run)
    assert [(r.name, r.step, _content(r)) for r in repaired.records] == before[:8]
    assert list(repair_run(run)) == [f"{FILE}: complete and intact"]


def test_repair_sets_damage_aside(run: Path) -> None:
    file = run / FILE
    data = bytearray(file.read_bytes())
    data[int(open_run(run).records[3].source.partition("@")[2]) + 20] ^= 1
    file.write_bytes(data)
    assert not verify_run(run).intact
    assert list(repair_run(run)) == [
        f"{FILE}: 11 records kept, index written; 1 damaged parts left out, the file as it was is {FILE}.damaged"
    ]
    assert (run / f"{FILE}.damaged").read_bytes() == data


def test_a_missing_rank_is_a_problem(run: Path) -> None:
    header = frames.encode_meta({"format": "tensortap", "version": 1, "rank": 2, "world_size": 4, "parallel": {}})
    (run / "rank-00002.msgpack").write_bytes(frames.encode_frame("header", frames.decode_meta(header), 0))
    opened = open_run(run)
    assert opened.missing_ranks == (1, 3)
    assert [p.message for p in opened.problems if p.kind == "missing_rank"] == [
        "rank 1 of 4 has no file (there are: 0, 2)",
        "rank 3 of 4 has no file (there are: 0, 2)",
    ]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: None])
def test_what_is_no_run_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], object]
) -> None:
    make(tmp_path / "nothing")
    for command in ("ls", "show", "verify", "repair"):
        assert main([command, str(tmp_path / "nothing")]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert str(tmp_path / "nothing") in captured.err


@given(st.binary(max_size=400))
@settings(max_examples=40)
def test_arbitrary_files_open(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("arbitrary")
    (folder / FILE).write_bytes(data)
    (folder / "rank-00000.status").write_bytes(data[::-1])
    _read_everything(folder)
    verify_run(folder)


STRANGE: list[tuple[str, dict[str, object]]] = [
    ("record", {"name": "x", "shape": [2**40, -1], "dtype": "float32"}),
    ("record", {"name": "x", "shape": [2**40, 2**40], "dtype": "float32", "step": -7, "occurrence": 2**63}),
    ("record", {"name": "x", "shape": [3], "dtype": "nonsense", "level": "sample(rows=1000000)"}),
    ("record", {"name": "x", "shape": [3], "dtype": "uint8", "level": "strange"}),
    ("record", {"name": "x", "shape": [3], "dtype": 7, "tags": 3}),
    ("record", {"name": "x", "step": "y", "order": None}),
    ("record", {"name": "x", "compression": "zstd", "bytes": 2**39, "dtype": "uint8", "shape": [2**39]}),
    ("record", {"name": "x", "shape": [1], "dtype": "float64", "level": "stats"}),
    ("record", {}),
    ("header", {"world_size": 2**62, "parallel": [1], "versions": 3, "framework": {}, "version": 99}),
    ("header", {"world_size": "many", "parallel": {"tp": [1], "pp": ["a", "b"]}}),
    ("step", {"step": "x"}),
    ("step", {"step": 2**80 % 2**64, "layout": {"rows": 2**60, "sequences": 5}}),
    ("step", {"step": 1, "layout": {"rows": -1, "sequences": [[1]], "forward_mode": 3, "token_ids": b"odd"}}),
    ("taps", {"taps": [{"id": 3}, 7, {"id": "a", "line": "x"}]}),
    ("taps", {"taps": 5}),
    ("coverage", {"fired": [1]}),
    ("config", {"paths": 3}),
    ("index", {}),
    ("unknown", {"x": 1}),
]


@given(st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_mutated_files_open(tmp_path_factory: pytest.TempPathFactory, pristine: Path, generator: random.Random) -> None:
    """Pieces of real frames, shuffled, overwritten and repeated; checksums of metadata made right again at times."""
    data = bytearray((pristine / FILE).read_bytes())
    for _ in range(generator.randrange(1, 6)):
        first, second = sorted(generator.randrange(len(data) + 1) for _ in range(2))
        kind = generator.randrange(5)
        if kind == 0:
            del data[first:second]
        elif kind == 1:
            data[first:first] = data[second : second + 300]
        elif kind == 2:
            data[first : first + 8] = generator.randbytes(8)
        elif kind == 3:
            data[first : first + 4] = b"\xff\xff\xff\xff"
        else:
            kind, meta = generator.choice(STRANGE)
            data[first:first] = frames.encode_frame(kind, meta, first, (b"abc",) * generator.randrange(3))
        if not data:
            break
    folder = tmp_path_factory.mktemp("mutated")
    (folder / FILE).write_bytes(data)
    _read_everything(folder)
    verify_run(folder)


def test_lengths_that_lie_do_not_allocate(tmp_path: Path) -> None:
    """Fields of 4 GiB in a file of a few bytes."""
    parts = [
        b"\x93\xa6record\xc6\xff\xff\xff\xff" + bytes(30),
        b"\xdc\xff\xff\xa6record\xc6" * 20,
        b"\xc6\xff\xff\xff\xff",
    ]
    index = frames.encode_frame("index", {}, 0, (b"\xdd\xff\xff\xff\xff",))
    for data in [*parts, index + frames.encode_footer(0)]:
        (tmp_path / FILE).write_bytes(data)
        tracemalloc.start()
        _read_everything(tmp_path)
        verify_run(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4_000_000


def test_a_file_made_to_look_like_frames_everywhere_takes_no_quadratic_time(tmp_path: Path) -> None:
    # Each of the beginnings claims a meta that reaches to the end of the file.
    count = 20_000
    beginning = b"\x93\xa6record\xc6"
    length = len(beginning) + 4
    data = b"".join(beginning + (count * length // 2).to_bytes(4, "big") for _ in range(count))
    (tmp_path / FILE).write_bytes(data)
    reads = 0

    def counting(blob: bytes) -> int:
        nonlocal reads
        reads += len(blob)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "checksum", counting)
        _read_everything(tmp_path)
    assert reads < 20 * len(data)


def test_a_file_that_ends_within_its_footer_is_not_closed_and_holds_all_records(run: Path) -> None:
    file = run / FILE
    data = file.read_bytes()
    for missing in range(1, frames.FOOTER_BYTES + 1):
        file.write_bytes(data[:-missing])
        assert verify_run(run).intact, missing
        assert {problem.kind for problem in open_run(run).problems} <= {"unclosed", "truncated"}, missing


def test_a_damaged_record_whose_tags_are_no_map_is_named_without_them(tmp_path: Path) -> None:
    frame = bytearray(frames.encode_frame("record", {"name": "hidden", "tags": 5, "step": 1}, 0, (b"12345678",)))
    frame[frames.decode_frame(frame, 0).payloads[0].offset] ^= 1
    report = Report()
    verify_data(FILE, frame, report)
    assert any("(hidden, step 1)" in line for line in report.lines)

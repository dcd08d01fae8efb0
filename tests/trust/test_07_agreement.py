"""Counts, index and content are held against each other; a repair and a mixture of runs stay visible."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dumper import open_run
from dumper.adapters import Process
from dumper.cli import main
from dumper.format import frames
from dumper.format.index import IndexColumns
from dumper.readers.streams.segments import open_segment
from tests.dumper.recording.conftest import Recording
from tests.trust.conftest import PREAMBLE, Programs

FILE = "rank-00000.msgpack"


def _record(folder: Path, rank: int = 0, world: int = 1, records: int = 12) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dumper.recording.session.describe_process", lambda **_: Process(rank, world, {}, {}, "test"))
        recording = Recording(folder)
        recorder = recording.start()
        for number in range(records):
            recorder.dump("x", np.full(64, number), layer_id=number)
        recorder.close()
    return folder / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return _record(tmp_path)


def _kinds(path: Path) -> set[str]:
    return {problem.kind for problem in open_run(path).problems}


def test_a_file_that_was_cut_short(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / FILE
    assert main(["verify", str(run)]) == 0
    whole = file.read_bytes()
    offsets = [int(record.source.partition("@")[2]) for record in open_run(run).records]
    # In the middle of a frame, and between two, where nothing in the file itself is wrong.
    for length, left in ((1002, None), (offsets[5], 5), (offsets[0], 0)):
        file.write_bytes(whole[:length])
        opened = open_run(run)
        if left is not None:
            assert len(opened.records) == left
        missing = 12 - len(opened.records)
        assert opened.losses == missing > 0
        messages = [problem.message for problem in opened.problems if problem.kind == "missing_records"]
        assert messages == [f"rank 0: 12 records were written, and {missing} of them are not in its files"]
        assert main(["verify", str(run)]) == 1
        assert messages[0] in capsys.readouterr().out


def test_a_file_that_is_gone_with_its_counts_left(run: Path) -> None:
    (run / FILE).unlink()
    opened = open_run(run)
    assert opened.losses == 12
    assert "missing_records" in _kinds(run)
    assert main(["verify", str(run)]) == 1


def test_without_counts_the_numbers_of_records_tell(run: Path) -> None:
    (run / "rank-00000.status").unlink()
    file = run / FILE
    data = bytearray(file.read_bytes())
    middle = int(open_run(run).records[5].source.partition("@")[2])
    data[middle] ^= 0xFF
    data[-1] ^= 0xFF
    file.write_bytes(data)
    assert "missing_records" in _kinds(run)


def test_counts_that_cannot_be_read_are_said(run: Path) -> None:
    (run / "rank-00000.status").write_bytes(b"nonsense")
    assert "unreadable" in _kinds(run)
    assert main(["verify", str(run)]) == 1


def test_a_killed_process_misses_nothing_that_was_written(program: Programs) -> None:
    outcome = program("""
for number in range(100):
    dumper.dump("x", np.zeros(3))
dumper.flush()
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert outcome.returncode == -9
    assert _kinds(program.path) == {"unclosed"}
    assert main(["verify", str(program.path)]) == 0


@pytest.mark.parametrize("change", ["step", "occurrence", "descriptor"])
def test_an_index_that_says_something_else_than_the_frames(run: Path, change: str) -> None:
    """With a right checksum: forged, or written by something that is wrong."""
    file = run / FILE
    segment = open_segment(file)
    offset = frames.decode_footer(segment.data, len(segment.data) - frames.FOOTER_BYTES)
    assert offset is not None
    columns = IndexColumns(
        list(segment.index.descriptors), steps=segment.index.steps.tolist(), others=segment.index.others.tolist()
    )
    for row in range(len(segment.index)):
        values = {name: int(column[row]) for name, column in segment.index.columns.items()}
        if row == 3:
            values[change] = values[change] + 1
        columns.add(values.values())
    index = frames.encode_frame("index", columns.meta(), offset, (columns.encode(),))
    file.write_bytes(bytes(segment.data[:offset]) + index + frames.encode_footer(offset))
    assert main(["verify", str(run)]) == 1


def test_repair_says_for_good_what_it_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / FILE
    data = bytearray(file.read_bytes())
    victim = open_run(run).records[3]
    # In the payload: the record is there and its bytes are wrong.
    data[victim._column("payload_offset") + 5] ^= 1
    file.write_bytes(data)
    assert main(["repair", str(run)]) == 0
    opened = open_run(run)
    assert len(opened.records) == 11
    (message,) = [problem.message for problem in opened.problems if problem.kind == "repaired"]
    assert "x layer_id=3" in message
    assert f"{FILE}.damaged" in message
    assert (run / f"{FILE}.damaged").read_bytes() == data
    assert "missing_records" in _kinds(run)
    assert main(["verify", str(run)]) == 1
    # Once more, nothing changes.
    before = file.read_bytes()
    assert main(["repair", str(run)]) == 0
    assert file.read_bytes() == before


def test_repair_keeps_an_unfinished_end_and_earlier_damage(run: Path) -> None:
    file = run / FILE
    cut = file.read_bytes()[:-300]
    file.write_bytes(cut)
    assert main(["repair", str(run)]) == 0
    assert (run / f"{FILE}.damaged").read_bytes() == cut
    assert "repaired" in _kinds(run)
    again = bytearray(file.read_bytes())
    again[int(open_run(run).records[0].source.partition("@")[2]) + 15] ^= 1
    file.write_bytes(again)
    assert main(["repair", str(run)]) == 0
    assert (run / f"{FILE}.damaged").read_bytes() == cut
    assert (run / f"{FILE}.damaged.1").read_bytes() == again
    messages = [problem.message for problem in open_run(run).problems if problem.kind == "repaired"]
    assert len(messages) == 2


def test_ranks_of_two_launches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = _record(tmp_path / "one", 0, 2)
    other = _record(tmp_path / "other", 1, 2)
    assert not {"mixed_runs"} & _kinds(one)
    for name in ("rank-00001.msgpack", "rank-00001.status"):
        shutil.copy(other / name, one / name)
    assert "mixed_runs" in _kinds(one)
    assert main(["verify", str(one)]) == 1
    assert "2 different runs" in capsys.readouterr().out


def test_ranks_of_worlds_of_two_sizes(tmp_path: Path) -> None:
    _record(tmp_path, 0, 2)
    run = _record(tmp_path, 1, 4)
    assert "mixed_runs" in _kinds(run)


LAUNCHER = """
import subprocess, sys
code = sys.argv[1]
children = [subprocess.Popen([sys.executable, "-c", code, rank, "2"]) for rank in sys.argv[2:]]
sys.exit(max(child.wait() for child in children))
"""
RANK = (
    PREAMBLE
    + """
from dumper.adapters import Process
from dumper.recording import session
session.describe_process = lambda **_: Process(int(sys.argv[1]), int(sys.argv[2]), {}, {}, "test")
dumper.dump("x", np.zeros(3))
"""
)


@pytest.mark.slow
def test_a_launch_that_finds_ranks_of_an_earlier_one(program: Programs) -> None:
    """The earlier launch died before its second rank wrote; the next one has both."""
    outcome = program(LAUNCHER, RANK, "0", TENSORTAP_ENABLE="1")
    assert outcome.returncode == 0, outcome.err
    outcome = program(LAUNCHER, RANK, "0", "1")
    assert outcome.returncode == 0, outcome.err
    assert "mixed_runs" in _kinds(program.path)


@pytest.mark.slow
def test_ranks_of_one_launch_share_an_id_whenever_they_come(program: Programs) -> None:
    one_after_another = LAUNCHER.replace("for rank in sys.argv[2:]", "for rank in sys.argv[2:] if not time.sleep(2)")
    outcome = program(one_after_another, RANK, "0", "1", TENSORTAP_ENABLE="1")
    assert outcome.returncode == 0, outcome.err
    assert open_run(program.path).ranks == (0, 1)
    assert "mixed_runs" not in _kinds(program.path)

"""The time line of steps in ``dumper ls``."""

from __future__ import annotations

from pathlib import Path

import pytest

from dumper.cli import main
from dumper.format.frames import FormatError
from dumper.layout import SequenceSpan, TokenLayout
from dumper.reading import timeline
from dumper.reading.open import open_run
from dumper.reading.timeline import step_table
from tests.dumper.recording.conftest import Recording


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A prefill of two sequences with a row of padding, four decode passes, and a step without a layout."""
    recording = Recording(tmp_path / "run")
    recorder = recording.start()
    spans = (SequenceSpan("a", 0, 5), SequenceSpan("b", 0, 2))
    recorder.step(layout=TokenLayout("extend", spans, 8))
    for step in range(4):
        recorder.step(layout=TokenLayout("decode", tuple(SequenceSpan(one, 5 + step, 1) for one in "ab"), 2))
    recorder.step()
    recorder.dump("x", [1])
    recording.close()
    return recording.path


def test_steps_that_do_the_same_share_a_line(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = step_table(open_run(path)).rows
    assert rows == [
        ("0", "extend", "2", "7", "1", "#" * 24),
        ("1-4", "decode", "2", "2", "", "#" * 7),
    ]
    monkeypatch.setattr(timeline, "MOST_LINES", 1)
    assert step_table(open_run(path)).rows[1:] == [("…", "4 more", "", "", "", "")]
    monkeypatch.setattr(timeline, "MOST_STEPS", 3)
    assert step_table(open_run(path)).rows[1:] == [("…", "5 more", "", "", "", "")]
    assert main(["ls", str(path)]) == 0
    assert "extend" in capsys.readouterr().out


def test_a_layout_that_makes_no_sense_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(path)
    layout = run.layout

    def malformed(step: int, rank: int) -> TokenLayout | None:
        if step == 0:
            raise FormatError("the layout of step 0 is malformed")
        return layout(step, rank)

    monkeypatch.setattr(run, "layout", malformed)
    assert [row[0] for row in step_table(run).rows] == ["1-4"]

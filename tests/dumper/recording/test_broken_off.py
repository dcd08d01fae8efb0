"""A recording that ends in order, in the middle of a forward pass, says so."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import comparator
from dumper import open_run
from dumper.layout import SequenceSpan, TokenLayout
from dumper.recording.recorder import Recorder
from testbed.forked import ForkHost
from tests.dumper.recording.conftest import Recording


def messages_of(path: Path) -> list[str]:
    return [problem.message for problem in open_run(path).problems if problem.kind == "unclosed"]


def passes(recorder: Recorder, count: int, *, until: str | None = None) -> None:
    """Passes of a model of two layers: a prompt of four tokens, then one token each; the last is left ``until``."""
    for step in range(count):
        span = SequenceSpan("one", 0, 4) if step == 0 else SequenceSpan("one", 3 + step, 1)
        ids = np.arange(span.start, span.start + span.count) + 5
        with recorder.step(layout=TokenLayout("decode" if step else "extend", (span,), span.count, token_ids=ids)):
            for name in ("first", "second"):
                recorder.dump(name, np.outer(ids, np.arange(1, 9)).astype(np.float32), dims="t h")
                if step == count - 1 and until == name:
                    recorder.close()
                    return


@pytest.mark.parametrize("until", [None, "first"])
def test_closed_inside_a_pass(recording: Recording, until: str | None) -> None:
    passes(recording.start(), 3, until=until)
    recording.close()
    expected = ["rank 0 ended in the middle of step 2; what the pass had left to record is missing"]
    assert messages_of(recording.path) == (expected if until else [])


@pytest.mark.parametrize("aligner", ["smart", "concat_steps", None])
def test_what_is_missing_of_the_pass_fails_a_comparison(tmp_path: Path, aligner: str | None) -> None:
    paths = []
    for name, until in (("whole", None), ("broken", "first")):
        recorder = Recorder()
        recorder.configure(enable=True, dir=str(tmp_path), run=name, control=False)
        passes(recorder, 3, until=until)
        recorder.close()
        paths.append(tmp_path / name)
    options = {} if aligner is None else {"token_aligner": aligner}
    for one, other in (paths, paths[::-1]):
        assert not comparator.compare(str(one), str(other), **options).passed  # type: ignore[arg-type]
    assert comparator.compare(str(paths[0]), str(paths[0]), **options).passed  # type: ignore[arg-type]


def test_steps_that_nobody_ends_are_not_said_to_break_off(recording: Recording) -> None:
    recorder = recording.start()
    for _ in range(3):
        recorder.step()
        recorder.dump("x", np.ones(3, np.float32))
    assert not recording.read().problems


def test_a_pass_behind_the_steps_that_were_asked_for_is_none_of_the_recording(recording: Recording) -> None:
    recorder = recording.start(steps="0-1")
    passes(recorder, 4, until="first")
    recording.close()
    assert messages_of(recording.path) == []


def test_of_a_run_that_is_begun_anew_nothing_breaks_off(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.configure(enable=True, dir=str(tmp_path), run="broken", control=False)
    passes(recorder, 2, until="first")
    recorder.configure(run="whole")
    passes(recorder, 2)
    recorder.close()
    assert messages_of(tmp_path / "broken")
    assert not messages_of(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_while_a_pass_runs(tmp_path: Path, light_host: ForkHost) -> None:
    code = """
import os, signal, time
import numpy as np
from dumper import dumper
for step in range(3):
    with dumper.step():
        dumper.dump("first", np.ones(4, np.float32))
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        dumper.dump("second", np.ones(4, np.float32))
"""
    environment = {"TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": str(tmp_path), "TENSORTAP_CONTROL": "0"}
    result = light_host.run(code, environment=environment, timeout=100)
    assert result.returncode == -signal.SIGTERM, (result.stderr, sys.version)
    assert messages_of(tmp_path / "run") == [
        "rank 0 ended in the middle of step 2; what the pass had left to record is missing"
    ]

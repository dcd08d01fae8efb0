"""Names, tags and dims that are no text, or text that no UTF-8 can say: the run stays readable for everybody."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import hypothesis
import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dumper import open_run
from dumper.readers.streams.verify import verify_run
from tests.dumper.recording.conftest import Recording
from tests.trust.conftest import ROOT

X = np.arange(3)


@pytest.mark.parametrize("name", [5, None, b"x", 1.5, ("a",), object(), ["x"], float("nan")])
def test_a_name_that_is_no_text_is_refused(recording: Recording, caplog: Any, name: Any) -> None:
    recorder = recording.start()
    recorder.dump("before", X)
    recorder.dump(name, X)
    recorder.dump("after", X)
    run = recording.read()
    assert [record.name for record in run.records] == ["before", "after"]
    assert run.losses == 1
    assert "text" in caplog.text
    assert verify_run(recording.path).intact


@pytest.mark.parametrize("dims", [5, b"t h", ("t", "h"), object()])
def test_dims_that_are_no_text(recording: Recording, dims: Any) -> None:
    recorder = recording.start()
    recorder.dump("x", X, dims=dims)
    recorder.dump("y", X)
    run = recording.read()
    assert len(run.records) + run.losses == 2
    assert "y" in [record.name for record in run.records]
    assert "corrupted" not in {problem.kind for problem in run.problems}
    assert verify_run(recording.path).intact


def test_text_that_is_no_utf8_is_escaped(recording: Recording) -> None:
    recorder = recording.start()
    recorder.dump("a\ud800", X, dims="t\udfff", part="b\udc80", **{"key\ud801": 1})
    recorder.step(mode="\ud800")
    recorder.dump("second", X)
    run = recording.read()
    record = run.records[0]
    assert (record.name, record.dims, dict(record.tags)) == (
        "a\\ud800",
        "t\\udfff",
        {"part": "b\\udc80", "key\\ud801": 1},
    )
    for text in (record.name, record.dims, *record.tags):
        assert text is not None
        text.encode("utf-8")
    # As any other reader sees it: msgpack whose text is UTF-8.
    with (recording.path / "rank-00000.msgpack").open("rb") as file:
        metas = [frame[1] for frame in msgpack.Unpacker(file, raw=False) if frame[0] in ("record", "step")]
    assert len(metas) == 3
    for meta in metas:
        msgpack.unpackb(meta, raw=False)


@pytest.mark.parametrize("value", [1 << 70, -(1 << 64), 10**400, "x" * 3_000_000, b"bytes", [1], {"a": 1}, object()])
def test_tags_of_any_kind(recording: Recording, value: Any) -> None:
    recorder = recording.start()
    recorder.dump("x", X, tag=value)
    recorder.dump("y", X)
    run = recording.read()
    assert len(run.records) + run.losses == 2
    assert run.select(name="y")
    assert verify_run(recording.path).intact


def test_a_tag_whose_text_raises(recording: Recording) -> None:
    class Angry:
        def __str__(self) -> str:
            raise RuntimeError("no")

        def __hash__(self) -> int:
            raise RuntimeError("no")

    recorder = recording.start()
    recorder.dump("x", X, tag=Angry())
    recorder.dump("y", X)
    run = recording.read()
    assert [record.name for record in run.records] == ["y"]
    assert run.losses == 1


@given(
    name=st.text(st.characters(codec=None, categories=None), max_size=20),
    key=st.text(st.characters(codec=None, categories=None), min_size=1, max_size=8),
    tag=st.one_of(st.text(st.characters(codec=None, categories=None)), st.integers(), st.floats(), st.none()),
)
@example(name="", key="0", tag=float("nan"))
@settings(max_examples=60)
def test_any_text(tmp_path_factory: pytest.TempPathFactory, name: str, key: str, tag: Any) -> None:
    recording = Recording(tmp_path_factory.mktemp("names"))
    recorder = recording.start()
    hypothesis.assume(key not in ("name", "value", "dims", "level", "grad", "self"))
    recorder.dump(name, X, **{key: tag})
    run = recording.read()
    assert len(run.records) == 1, run.problems
    assert run.records[0].name == name.encode("utf-8", "backslashreplace").decode()
    assert verify_run(recording.path).intact
    run.to_polars()


@pytest.mark.parametrize("command", [["ls"], ["ls", "--records"], ["ls", "--json"], ["show"], ["verify"]])
def test_they_are_printed_in_any_locale(recording: Recording, command: list[str]) -> None:
    recorder = recording.start()
    recorder.dump("schön\ud800", X, tag="\u202eabc", other="é")
    recording.close()
    result = subprocess.run(
        [sys.executable, "-m", "dumper", command[0], str(recording.path), *command[1:]],
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PATH": ""},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert open_run(recording.path).records

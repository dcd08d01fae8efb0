"""Prompts are in recordings: nobody but their owner reads them, unless asked otherwise."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dumper.control.controller import read_ranks
from tests.dumper.recording.conftest import Recording


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _modes(folder: Path) -> dict[str, int]:
    found = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in found}


def _record(recording: Recording, **settings: object) -> None:
    recorder = recording.start(control=True, **settings)
    recorder.step()
    recorder.dump("x", np.zeros(3))
    recorder.close()


def test_recordings_are_private(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "deep" / "runs")
    _record(recording)
    assert read_ranks(recording.path)
    modes = _modes(tmp_path / "deep")
    assert {"runs/run/rank-00000.msgpack", "runs/run/rank-00000.status", "runs/run/run-id"} <= set(modes)
    assert all(mode in (0o700, 0o600) for mode in modes.values()), modes
    assert modes["runs/run/control/rank-00000.json"] == 0o600


def test_as_open_as_the_umask_when_asked(tmp_path: Path) -> None:
    os.umask(0o027)
    recording = Recording(tmp_path / "runs")
    _record(recording, access="umask")
    modes = _modes(tmp_path / "runs")
    assert modes["run"] == 0o750
    assert modes["run/control"] == 0o750
    assert all(mode in (0o750, 0o640) for mode in modes.values()), modes


def test_a_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o755)
    _record(Recording(tmp_path / "runs"))
    modes = _modes(tmp_path / "runs")
    assert modes["."] == 0o755
    assert modes["run"] == 0o700


def test_the_bytecode_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patcher.load import cache

    monkeypatch.setattr(cache, "folder", lambda: str(tmp_path / "cache" / "tensortap"))
    assert cache.store("some.bin", compile("1", "some", "eval"))
    modes = _modes(tmp_path / "cache")
    assert modes["tensortap/some.bin"] == 0o600
    assert modes["tensortap"] == 0o700

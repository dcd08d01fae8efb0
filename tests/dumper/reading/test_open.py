"""``open_run`` knows every folder of ``dumper/readers``, and says what it looked for when there is nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dumper.readers
from dumper import open_run
from dumper.reading.open import known_readers
from dumper.reading.protocol import RunError

ANOTHER_KIND = """
from dumper.reading.protocol import Reader

class Notes:
    def __init__(self, path, progress):
        self.path = path

READER = Reader("notes.txt", lambda path: (path / "notes.txt").exists(), Notes)
"""


@pytest.fixture
def another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside those that ship, as somebody would add it."""
    folder = tmp_path / "more" / "notes"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(ANOTHER_KIND)
    monkeypatch.setattr(dumper.readers, "__path__", [*dumper.readers.__path__, str(tmp_path / "more")])
    known_readers.cache_clear()
    yield tmp_path
    known_readers.cache_clear()
    sys.modules.pop("dumper.readers.notes", None)


def test_a_further_kind_of_recording_is_a_folder_and_nothing_else(another_kind: Path) -> None:
    recording = another_kind / "recording"
    recording.mkdir()
    with pytest.raises(RunError, match="is empty"):
        open_run(recording)
    (recording / "notes.txt").write_text("x")
    assert type(open_run(recording)).__name__ == "Notes"
    (recording / "notes.txt").rename(recording / "other.txt")
    with pytest.raises(RunError, match=r"no notes\.txt files found"):
        open_run(recording)


def test_what_ships() -> None:
    assert [reader.files for reader in known_readers()] == ["rank-*.msgpack", "step*/rank*/dump.json", ".pt"]


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    (tmp_path / "tp1").mkdir()
    (tmp_path / "tp1" / "rank-00000.msgpack").write_bytes(b"")
    with pytest.raises(RunError, match=r"is no run but holds some: .*tp1"):
        open_run(tmp_path)


@pytest.mark.parametrize(("name", "complaint"), [("absent", "no such directory"), ("file", "not a directory")])
def test_no_directory(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=complaint):
        open_run(tmp_path / name)


def test_a_folder_is_listed_once_to_open_it_and_again_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path=".": listed.append(str(path)) or listdir(path))
    for number in range(2):
        (tmp_path / f"step=0___rank=0___dump_index={number}___name=x.pt").touch()
        assert len(open_run(tmp_path).records) == number + 1
    assert listed.count(str(tmp_path)) == 2

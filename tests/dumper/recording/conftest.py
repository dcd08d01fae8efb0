"""A recorder of one's own, and the run that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dumper import Run, open_run
from dumper.recording.recorder import Recorder
from dumper.settings import Settings


class Recording:
    """Makes recorders into one run, and reads it back."""

    def __init__(self, folder: Path, **always: Any) -> None:
        """``always``: settings of all of them."""
        self.folder = folder
        self._always = always
        self._recorders: list[Recorder] = []

    def start(self, **settings: Any) -> Recorder:
        chosen = {"enable": True, "control": False, "dir": str(self.folder), "run": "run", **self._always, **settings}
        recorder = Recorder(Settings().changed(**chosen))
        self._recorders.append(recorder)
        return recorder

    @property
    def path(self) -> Path:
        return self.folder / "run"

    def read(self) -> Run:
        """Close everything and open the run."""
        self.close()
        return open_run(self.path)

    def close(self) -> None:
        while self._recorders:
            self._recorders.pop().close()


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path)
    yield made
    made.close()


@pytest.fixture
def roundtrip(recording: Recording) -> Callable[[Any], Any]:
    """Records one value and gives back its record."""

    def make(value: Any) -> Any:
        recording.start().dump("x", value)
        run = recording.read()
        assert not run.problems, run.problems
        return run.records[0]

    return make

"""What one more small record or pair takes, counted in calls of functions: what is worked out once for those that are
alike is not worked out for each. A count does not depend on the machine; it says nothing of a compiled function, which
``test_speed`` does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from comparator.cli import main as compare
from dumper import open_run
from dumper.convert.cli import main as convert
from dumper.recording.context import ThreadTags
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from tests.harness.counted_calls import calls

LAYERS, STEPS = 8, (4, 32, 64)
MORE = 1.15
"""Times what was counted last: what Python and libraries call may change a little."""


def write(path: Path, steps: int, noise: float) -> Path:
    recorder = Recorder(Settings(enable=True, control=False, dir=str(path.parent), run=path.name))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        recorder.step()
        for layer in range(LAYERS):
            value = torch.randn(8, 64, generator=generator)
            value += noise * torch.randn(8, 64, generator=torch.Generator().manual_seed(layer))
            recorder.dump("hidden", value.to(torch.bfloat16), dims="t h", layer_id=layer)
    recorder.close()
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with two runs of some steps, and the same as files of SGLang's dumper."""
    folders = []
    for steps in STEPS:
        folder = tmp_path_factory.mktemp(f"steps-{steps}")
        for name, noise in (("a", 0.0), ("b", 1e-3)):
            assert convert([str(write(folder / name, steps, noise)), str(folder / f"{name}.dump")]) == 0
        folders.append(folder)
    return folders


def compare_runs(folder: Path) -> None:
    assert compare([str(folder / "a"), str(folder / "b"), "--jobs", "1"]) == 0


def compare_dumps(folder: Path) -> None:
    sides = str(folder / "a.dump"), str(folder / "b.dump")
    assert compare([*sides, "--jobs", "1", "--report-path", ""]) == 0


def read(folder: Path) -> None:
    for record in open_run(folder / "a").records:
        assert record.is_intact()
        record.array()


def to_files(folder: Path) -> None:
    assert convert([str(folder / "a"), str(folder / "files")]) == 0


def to_run(folder: Path) -> None:
    assert convert([str(folder / "a.dump"), str(folder / "run")]) == 0


@pytest.mark.parametrize(
    ("of", "counted"), [(compare_runs, 377), (compare_dumps, 426), (read, 42), (to_files, 190), (to_run, 216)]
)
def test_one_more_takes_as_many_calls_as_it_did(runs: list[Path], of: Callable[[Path], None], counted: int) -> None:
    # The first one has what is imported and made once.
    _, few, many = (calls(functools.partial(of, folder)) for folder in runs)
    found = (many - few) / (LAYERS * (STEPS[2] - STEPS[1]))
    assert found <= MORE * counted, f"{found:.0f} calls"


def test_a_value_that_is_recorded_once_more_takes_as_many_calls_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadTags, "in_use", False)  # another test may have had some
    recorder = Recorder(Settings(enable=True, control=False, dir=str(tmp_path), run="run"))
    value = torch.ones(8, 64)

    def record(times: int) -> None:
        for _ in range(times):
            recorder.dump("hidden", value, dims="t h", layer_id=3)

    recorder.step()
    record(10)
    few, many = (calls(functools.partial(record, times)) for times in (100, 200))
    recorder.close()
    assert (many - few) / 100 <= 6

"""What is compared need only be a ``Run`` of ``Record``s: nothing is asked of either that the protocols do not name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import comparator
import dumper.readers
from comparator.cli import main
from dumper import open_run
from dumper.cli import main as dumper_main
from dumper.convert.to_pt import write_pt_files
from dumper.reading.named_files import NamedFile
from dumper.reading.open import known_readers
from dumper.reading.protocol import Header, Record, RecordColumns, Run
from tests.comparator.fakes import FakeRecord, FakeRun, values
from tests.comparator.recording import write_run

KINDS = Path(__file__).parent / "kinds"
SHAPE = (4, 8)


class Strict:
    """Something of which only what a protocol names can be asked: a default of ``getattr`` does not hide the rest."""

    def __init__(self, protocol: type, real: Any) -> None:
        self._names = {name for name in vars(protocol) if not name.startswith("_")}
        self._real = real

    def __getattr__(self, name: str) -> Any:
        assert name in self._names, f"{name} is asked for, which the protocol does not name"
        return getattr(self._real, name)


class StrictRecord(Strict):
    def __init__(self, real: Record) -> None:
        super().__init__(Record, real)

    @property
    def named_file(self) -> Any:
        file = self._real.named_file
        return None if file is None else Strict(NamedFile, file)


class StrictRun(Strict):
    def __init__(self, real: Run) -> None:
        super().__init__(Run, real)
        self.records = [StrictRecord(record) for record in real.records]

    @property
    def headers(self) -> dict[int, Any]:
        return {rank: Strict(Header, header) for rank, header in self._real.headers.items()}

    def select(self, **wanted: Any) -> Sequence[Any]:
        return [StrictRecord(record) for record in self._real.select(**wanted)]

    def columns(self) -> RecordColumns:
        found = self._real.columns()
        columns = [found.kind, found.rank, found.step, found.occurrence]
        return RecordColumns([StrictRecord(record) for record in found.kinds], *columns)


def write_arrays(run: FakeRun, path: Path) -> Path:
    path.mkdir()
    for record in run.records:
        if record.data is not None:
            np.save(path / f"{record.step}-{record.rank}-{record.name}.npy", record.data)
    return path


def write_pt(run: FakeRun, path: Path) -> Path:
    path.mkdir()
    write_pt_files(open_run(write_run(run, path.parent / f"{path.name}-as-ours")), path)
    return path


WRITE: dict[str, Callable[[FakeRun, Path], Path]] = {"ours": write_run, "pt": write_pt, "arrays": write_arrays}


@pytest.fixture(autouse=True)
def third_kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reader of ``.npy`` files, where those that ship are."""
    monkeypatch.setattr(dumper.readers, "__path__", [*dumper.readers.__path__, str(KINDS)])
    known_readers.cache_clear()
    yield
    known_readers.cache_clear()
    sys.modules.pop("dumper.readers.arrays", None)


def run_of(fault: float = 0.0) -> FakeRun:
    records = []
    for step in range(2):
        for rank in range(2):
            for number, name in enumerate(("attn_output", "mlp_output")):
                data = values(*SHAPE, seed=10 * step + number)
                if (step, name) == (1, "mlp_output"):
                    data[2, 3] += fault
                records.append(FakeRecord(name, data, rank, step))
    return FakeRun(records, {rank: {"tp": (rank, 2)} for rank in range(2)})


def verdicts(report: comparator.Report) -> list[tuple[Any, ...]]:
    return [(one.name, one.location.step, dict(one.tags), one.category) for one in report.findings]


SETTINGS: list[dict[str, Any]] = [{}, {"quick": True}, {"filter": "mlp"}]


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_nothing_is_asked_that_the_protocols_do_not_name(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    paths = [WRITE[kind](run_of(fault), tmp_path / side) for side, fault in (("a", 0.0), ("b", 2.0))]
    if "filter" in settings and kind != "pt":
        settings = {"filter": "name == 'mlp_output'"}
    settings = {"override_dims": ["output:t h # tp:replicated"], **settings}
    as_they_are = comparator.compare(*paths, **settings)
    strict = comparator.compare(*(StrictRun(open_run(path)) for path in paths), **settings)
    assert verdicts(strict) == verdicts(as_they_are)
    assert {one.category for one in strict.findings} >= {"failed"}
    assert strict.summary.exit_code == as_they_are.summary.exit_code == 1


def test_a_third_kind_is_a_folder_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, same, other = (
        write_arrays(run_of(fault), tmp_path / name) for name, fault in (("a", 0), ("b", 0), ("c", 2))
    )
    dims = ["--override-dims", "output:t h # tp:replicated"]
    assert main([str(whole), str(same), *dims]) == 0
    assert main([str(whole), str(other), *dims]) == 1
    # Against a recording of another kind, too.
    ours = write_run(run_of(), tmp_path / "ours")
    assert main([str(ours), str(whole), *dims]) == 0
    capsys.readouterr()
    assert dumper_main(["ls", str(whole)]) == 0
    assert "mlp_output" in capsys.readouterr().out
    assert len(open_run(whole).to_polars()) == 8

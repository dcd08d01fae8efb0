"""The same run from moto's server, which many test against in the place of S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from comparator.cli import main as comparator
from comparator.elsewhere import on_this_machine
from comparator.engine.processes import NewProcesses
from comparator.errors import ComparatorError
from comparator.options import Options
from comparator.prepared import prepare
from dumper.cli import main as dumper
from dumper.reading.open import open_run
from dumper.storage import ranges
from tests.dumper.storage.conftest import record
from tests.moto_server import BUCKET, environment, make_bucket, moto_server, upload


@pytest.fixture(scope="module")
def moto_address() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def bucket(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket."""
    for name, value in environment(moto_address).items():
        monkeypatch.setenv(name, value)
    make_bucket(moto_address)
    return BUCKET


def test_a_run_in_a_bucket(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "TAIL", 1024)
    for name, changed in (("a", None), ("b", None), ("c", 1)):
        upload(record(tmp_path / name, changed=changed), name)
    for one, other in zip(open_run(f"{bucket}/a").records, open_run(tmp_path / "a").records, strict=True):
        assert one.is_intact()
        assert np.array_equal(one.array(), other.array())
    assert comparator([f"{bucket}/a", f"{bucket}/b"]) == 0
    assert comparator([f"{bucket}/a", f"{bucket}/c"]) == 1
    assert dumper(["verify", f"{bucket}/a"]) == 0
    assert dumper(["ls", "s3://nobucket/a"]) == 2
    assert "there is no such bucket" in capsys.readouterr().err


def test_an_object_that_was_replaced_is_noticed(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "TAIL", 1024)
    upload(record(tmp_path / "one"), "replaced")
    run = open_run(f"{bucket}/replaced")
    upload(record(tmp_path / "two", changed=1), "replaced")
    with pytest.raises(OSError, match="changed while it was read"):
        run.records[0].array()


def test_several_processes_compare_what_is_in_a_bucket(
    bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each opens the runs itself, since a fork of a process with connections has none; the report is the same."""
    for name, changed in (("d", None), ("e", 2)):
        upload(record(tmp_path / name, changed=changed), name)
    reports = []
    for jobs in ("1", "2"):
        assert comparator([f"{bucket}/d", f"{bucket}/e", "--jobs", jobs, "--output-format", "json"]) == 1
        reports.append(capfd.readouterr().out)
    assert reports[0] == reports[1]
    prepared = prepare(open_run(f"{bucket}/d"), open_run(f"{bucket}/e"), Options())
    engine = on_this_machine(prepared, 2)
    assert isinstance(engine, NewProcesses)
    rows = [row for unit in prepared.units for row in prepared.profiling()(unit).rows]
    from_others = [row for one in engine.results(prepared.units, prepared.profiling()) for row in one.rows]
    assert [(row.pair, row.part, row.packed) for row in from_others] == [
        (row.pair, row.part, row.packed) for row in rows
    ]
    upload(record(tmp_path / "f", changed=2, rows=6), "e")
    with pytest.raises(ComparatorError, match="the files differ"):
        list(engine.results(prepared.units, prepared.profiling()))

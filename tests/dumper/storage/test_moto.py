"""The same run from moto's server, which many test against in the place of S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import from_url

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


@pytest.fixture(scope="module")
def moto_address() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("werkzeug.serving.WSGIRequestHandler.log", lambda *_: None)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


@pytest.fixture
def bucket(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket."""
    import urllib.request

    for name, value in {
        "AWS_ENDPOINT_URL": moto_address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{moto_address}/runs", method="PUT")).close()
    return "s3://runs"


def _upload(folder: Path, address: str, name: str) -> None:
    store = from_url(address, client_options={"allow_http": True})
    for file in folder.iterdir():
        if file.is_file():
            obstore.put(store, f"{name}/{file.name}", file)


def test_a_run_in_a_bucket(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "TAIL", 1024)
    for name, changed in (("a", None), ("b", None), ("c", 1)):
        _upload(record(tmp_path / name, changed=changed), bucket, name)
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
    _upload(record(tmp_path / "one"), bucket, "replaced")
    run = open_run(f"{bucket}/replaced")
    _upload(record(tmp_path / "two", changed=1), bucket, "replaced")
    with pytest.raises(OSError, match="changed while it was read"):
        run.records[0].array()


def test_several_processes_compare_what_is_in_a_bucket(
    bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each opens the runs itself, since a fork of a process with connections has none; the report is the same."""
    for name, changed in (("d", None), ("e", 2)):
        _upload(record(tmp_path / name, changed=changed), bucket, name)
    reports = []
    for jobs in ("1", "2"):
        assert comparator([f"{bucket}/d", f"{bucket}/e", "--jobs", jobs, "--output-format", "json"]) == 1
        reports.append(capfd.readouterr().out)
    assert reports[0] == reports[1]
    prepared = prepare(open_run(f"{bucket}/d"), open_run(f"{bucket}/e"), Options())
    engine = on_this_machine(prepared, 2)
    assert isinstance(engine, NewProcesses)
    assert [one.rows for one in engine.results(prepared.units, prepared.profiling())] == [
        prepared.profiling()(unit).rows for unit in prepared.units
    ]
    _upload(record(tmp_path / "f", changed=2, rows=6), bucket, "e")
    with pytest.raises(ComparatorError, match="the files differ"):
        list(engine.results(prepared.units, prepared.profiling()))

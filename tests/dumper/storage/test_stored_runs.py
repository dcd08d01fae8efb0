"""Runs on object storage: the same as from a disk, with few requests, and a clear word for trouble."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparator.cli import main as comparator
from dumper.cli import main as dumper
from dumper.reading.open import open_run
from dumper.storage import ranges, requested
from dumper.storage.places import StorageError
from testbed.object_store import KEY, SECRET, Fault, ObjectStore, Request
from tests.dumper.storage.conftest import LAYERS, RANKS, STEPS, record

RECORDS = RANKS * STEPS * LAYERS


def _first(requests: list[Request], count: int, fault: Fault) -> Any:
    """The first ``count`` requests for a payload go wrong."""
    seen: list[int] = []

    def decide(request: Request) -> Fault | None:
        if request.range is not None and request.path.endswith(".msgpack"):
            seen.append(request.number)
        return fault if request.number in seen[:count] else None

    return decide


def test_a_stored_run_is_the_run_on_the_disk(store: ObjectStore) -> None:
    stored, local = open_run("s3://runs/a"), open_run(store.root / "runs" / "a")
    assert str(stored.path) == "s3://runs/a"
    assert stored.ranks == local.ranks
    assert stored.steps == local.steps
    assert stored.headers == local.headers
    assert stored.problems == local.problems
    assert stored.to_polars().equals(local.to_polars())
    for one, other in zip(stored.records, local.records, strict=True):
        assert (one.name, one.tags, one.step, one.source) == (other.name, other.tags, other.step, other.source)
        assert np.array_equal(one.array(), other.array())
        assert one.is_intact()
        assert not one.array().flags.writeable


def test_the_commands_say_of_a_stored_run_what_they_say_of_one_on_the_disk(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for place in ("s3://runs", str(store.root / "runs")):
        codes = [
            dumper(["ls", f"{place}/a", "--records", "--output", "json"]),
            dumper(["show", f"{place}/a", "x[0,:3]"]),
        ]
        codes.append(dumper(["show", f"{place}/a", f"{place}/c", "x", "--step", "1"]))
        codes += [dumper(["verify", f"{place}/a"]), dumper(["ls", f"{place}/a"])]
        codes.append(comparator([f"{place}/a", f"{place}/b", "--output-format", "json"]))
        codes.append(comparator([f"{place}/a", f"{place}/c", "--output-format", "json"]))
        codes.append(comparator(["check", f"{place}/a"]))
        said.append((codes, capsys.readouterr().out.replace(place, "")))
    assert said[0] == said[1]
    assert said[0][0] == [0, 0, 0, 0, 0, 0, 1, 0]


def test_sides_may_lie_in_different_places_and_a_path_may_have_been_through_pathlib(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert comparator([str(store.root / "runs" / "a"), "s3://runs/b"]) == 0
    assert len(open_run(Path("s3://runs/a")).records) == RECORDS


def test_a_stored_run_is_converted_to_a_disk_and_not_from_one(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dumper(["convert", "s3://runs/a", str(tmp_path / "pt")]) == 0
    assert len(list((tmp_path / "pt").glob("*.pt"))) == RECORDS
    assert dumper(["convert", "s3://runs/a", "s3://runs/new"]) == 2
    assert dumper(["repair", "s3://runs/a"]) == 2
    assert "copy it there" in capsys.readouterr().err


def test_few_requests_open_a_run_and_one_reads_a_record(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "TAIL", 1024)
    monkeypatch.setattr(requested, "GAP", 0)
    monkeypatch.setattr(ranges, "WINDOW", 64)
    run = open_run("s3://runs/a")
    _ = run.records
    # A listing, and for each rank its counts, the end of its file and the index, which is longer than that.
    assert len(store.requests) == 1 + 3 * RANKS
    record = run.records[5]
    before = len(store.requests)
    assert record.is_intact()
    record.array()
    record.array()
    assert len(store.requests) == before + 1
    read = store.requests[-1].range
    assert read is not None
    assert read[1] - read[0] < record.nbytes + 1024


def test_large_payloads_are_read_in_parts_into_a_mapped_file(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TAIL", 4096), ("WINDOW", 256)):
        monkeypatch.setattr(ranges, name, value)
    for name, value in (("PART", 8192), ("IN_MEMORY", 16384)):
        monkeypatch.setattr(requested, name, value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = record(store.root / "runs" / "large", rows=512)
    stored, local = open_run("s3://runs/large"), open_run(path)
    for one, other in zip(stored.records, local.records, strict=True):
        assert one.is_intact()
        assert np.array_equal(one.array(), other.array())
    assert not list(tmp_path.iterdir())
    longest = max(request.range[1] - request.range[0] for request in store.requests if request.range is not None)
    assert longest <= 8192
    assert dumper(["verify", "s3://runs/large"]) == 0


def test_a_full_disk_for_large_payloads_is_an_error_that_says_where(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(requested, "IN_MEMORY", 512)
    monkeypatch.setattr(ranges, "TAIL", 512)

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    assert comparator(["s3://runs/a", "s3://runs/b"]) == 2
    assert "No space left on device in " in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault", [Fault(500), Fault(503, "SlowDown"), Fault(cut_after=100), Fault(cut_after=0)], ids=str
)
def test_requests_that_fail_are_repeated(store: ObjectStore, fault: Fault, capsys: pytest.CaptureFixture[str]) -> None:
    store.fault = _first(store.requests, 2, fault)
    run = open_run("s3://runs/a")
    assert not run.problems
    local = open_run(store.root / "runs" / "a")
    assert all(np.array_equal(a.array(), b.array()) for a, b in zip(run.records, local.records, strict=True))


def _of_one_record(store: ObjectStore, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests for what holds one record of the run ``b`` go wrong."""
    for name, value in (("TAIL", 1024), ("WINDOW", 128)):
        monkeypatch.setattr(ranges, name, value)
    place = int(open_run("s3://runs/b").select(rank=1, step=1, layer_id=2)[0].source.split("@")[1])

    def decide(request: Request) -> Fault | None:
        start, end = request.range or (0, 0)
        return fault if request.path == "runs/b/rank-00001.msgpack" and start <= place + 200 < end else None

    store.fault = decide


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (Fault(500), "the storage answers 500 InternalError after retries"),
        (Fault(cut_after=0), "broke off in the middle of the answer, after retries"),
        (Fault(403, "AccessDenied"), "access is refused (403 AccessDenied)"),
    ],
    ids=str,
)
def test_a_record_that_goes_on_failing_is_an_error_and_no_number(
    store: ObjectStore, fault: Fault, word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _of_one_record(store, fault, monkeypatch)
    assert comparator(["s3://runs/a", "s3://runs/b", "--output-format", "json"]) == 1
    said = capsys.readouterr()
    findings = [line for line in map(json.loads, said.out.splitlines()) if line["type"].startswith("comparison")]
    errored = [line for line in findings if line["category"] == "errored"]
    assert len(findings) == STEPS * LAYERS
    assert [(line["location"]["step"], line["tags"]) for line in errored] == [(1, {"layer_id": "2"})]
    assert word in said.out
    assert "unreadable-object" in said.out
    assert "s3://runs/b/rank-00001.msgpack" in said.out
    assert SECRET not in said.err + said.out
    assert KEY not in said.err + said.out
    assert dumper(["show", "s3://runs/b", "--limit", "100"]) == 2
    assert word in capsys.readouterr().err
    assert dumper(["verify", "s3://runs/b"]) == 2


def test_what_lies_beside_what_cannot_be_read_is_read_by_itself(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where other requests that hold it are under way, and are going to fail."""
    run = open_run("s3://runs/b")
    segment, offset = run.records[0].frame_place  # type: ignore[attr-defined]
    stored = segment.stored

    class Doomed:
        start, end = 0, len(stored)

        def data(self) -> memoryview:
            raise StorageError("s3://runs/b", "access is refused", False)

    monkeypatch.setattr(stored.reads, "range", lambda *_: Doomed())
    stored.load(offset, offset + 100)
    found = stored.reads.covering(stored, offset, offset + 100)
    assert found is not None
    assert len(found.data()) >= 100


def test_a_storage_that_is_gone_ends_a_comparison_without_a_verdict(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TAIL", 1024), ("WINDOW", 128)):
        monkeypatch.setattr(ranges, name, value)
    monkeypatch.setattr(requested, "GAP", 0)
    monkeypatch.setattr(ranges, "GIVEN_UP", 3)

    def decide(request: Request) -> Fault | None:
        start, end = request.range or (0, 0)
        size = (store.root / request.path).stat().st_size
        payload = request.path.startswith("runs/b/rank-0000") and end - start > 1024 and end < size
        return Fault(503, "SlowDown") if payload else None

    store.fault = decide
    assert comparator(["s3://runs/a", "s3://runs/b"]) == 2
    assert "requests in a row failed, the last one since the storage answers 503 SlowDown" in capsys.readouterr().err


def test_an_object_that_changes_while_it_is_read_is_an_error(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "TAIL", 4096)
    record(store.root / "runs" / "changing")
    run = open_run("s3://runs/changing")
    file = store.root / "runs" / "changing" / "rank-00000.msgpack"
    file.write_bytes(file.read_bytes())
    with pytest.raises(OSError, match=r"s3://runs/changing/rank-00000.msgpack: the object changed while it was read"):
        run.records[0].array()
    file.unlink()
    with pytest.raises(OSError, match="there is no such object"):
        run.records[1].array()


def test_a_truncated_object_is_read_to_where_it_ends(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    path = record(store.root / "runs" / "cut")
    file = path / "rank-00000.msgpack"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    stored, local = open_run("s3://runs/cut"), open_run(path)
    assert [problem.message.replace(str(path), "s3://runs/cut") for problem in local.problems] == [
        problem.message for problem in stored.problems
    ]
    assert {"truncated", "unclosed"} <= {problem.kind for problem in stored.problems}
    assert len(stored.records) == len(local.records) < RECORDS
    assert comparator(["s3://runs/cut", "s3://runs/a"]) == 1
    assert dumper(["verify", "s3://runs/cut"]) == dumper(["verify", str(path)])


def test_damage_in_the_middle_is_found_and_walked_past(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "TAIL", 256)
    monkeypatch.setattr(ranges, "WINDOW", 128)
    monkeypatch.setattr(requested, "PART", 2048)
    path = record(store.root / "runs" / "damaged")
    file = path / "rank-00001.msgpack"
    content = bytearray(file.read_bytes())
    place = open_run(path).records[RECORDS // 2 + 3]
    offset = int(place.source.split("@")[1])
    content[offset : offset + 40] = b"\xff" * 40
    content[-200:-190] = b"\xff" * 10  # the index
    file.write_bytes(content)
    codes = [dumper(["verify", "s3://runs/damaged"])]
    stored = capsys.readouterr().out
    codes.append(dumper(["verify", str(path)]))
    assert codes == [1, 1]
    assert capsys.readouterr().out == stored
    assert "damaged: rank-00001.msgpack" in stored


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("s3://nobucket/a", "there is no such bucket"),
        ("s3://runs/nothing", "no such directory"),
        ("s3://runs", "is no run but holds some: s3://runs/a, s3://runs/b"),
        ("s3:///a", "names no bucket"),
        ("ftp://host/a", "ftp:// is not known; there are s3://"),
        ("az://runs/a", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("s3://runs/../a", "'..'"),
    ],
)
def test_an_address_that_is_no_run_is_refused(
    store: ObjectStore, address: str, word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    assert dumper(["ls", address]) == 2
    assert word in capsys.readouterr().err
    assert comparator([address, "s3://runs/a"]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    "address",
    ["s3://mykey:mysecret@runs/a", "s3://mysecret@runs/a", "az://runs/a?sig=mysecret", "abfss://c:mysecret@x/a"],
)
def test_credentials_in_an_address_are_refused_and_not_shown(
    address: str, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [["ls"], ["show"], ["verify"], ["repair"]]
    assert [dumper([*command, address]) for command in commands] == [2] * 4
    assert dumper(["convert", address, str(tmp_path / "x")]) == 2
    assert dumper(["convert", "s3://runs/a", address]) == 2
    assert comparator([address, "s3://runs/a"]) == 2
    assert comparator(["check", address]) == 2
    assert comparator(["s3://runs/a", "s3://runs/a", "--baseline-path", address]) == 2
    assert comparator(["s3://runs/a", address, "--follow"]) == 2
    said = capsys.readouterr()
    assert "mysecret" not in said.out + said.err
    assert "***" in said.err


def test_wrong_credentials_are_refused_by_the_store_and_not_shown(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrongkey")
    assert comparator(["s3://runs/a", "s3://runs/b"]) == 2
    said = capsys.readouterr().err
    assert "access is refused (403 InvalidAccessKeyId); credentials are AWS_ACCESS_KEY_ID" in said
    assert "wrongkey" not in said
    assert SECRET not in said


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_of_the_credentials_is_named(
    store: ObjectStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(store.root / "none"))
    monkeypatch.setenv("HOME", str(store.root))
    assert comparator(["s3://runs/a", "s3://runs/b"]) == 2
    said = capsys.readouterr().err
    assert "half of the credentials is missing: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_import = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "obstore":
            raise ImportError("No module named 'obstore'")
        return true_import(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "dumper.storage.buckets", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    assert dumper(["ls", "s3://runs/a"]) == 2
    assert "pip install 'tensortap[storage]'" in capsys.readouterr().err


def test_ten_thousand_objects_beside_a_run_are_listed_page_by_page(store: ObjectStore) -> None:
    path = store.root / "runs" / "crowded"
    shutil.copytree(store.root / "runs" / "a", path)
    for number in range(10_000):
        os.mknod(path / f"other-{number}")
    run = open_run("s3://runs/crowded")
    assert len(run.records) == RECORDS
    assert sum("list-type" in request.query for request in store.requests) == 11


def test_a_stored_run_goes_to_another_process_by_its_path(store: ObjectStore) -> None:
    place = pickle.loads(pickle.dumps(open_run("s3://runs/a").path))
    assert str(place) == "s3://runs/a"
    assert len(open_run(place).records) == RECORDS


def test_no_credentials_are_in_a_report(store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, page = tmp_path / "report.jsonl", tmp_path / "page.html"
    assert comparator(["s3://runs/a", "s3://runs/c", "--report-path", str(report), "--html", str(page)]) == 1
    for text in (report.read_text(), page.read_text(), capsys.readouterr().out):
        assert KEY not in text
        assert SECRET not in text
    assert json.loads(report.read_text().splitlines()[-1])

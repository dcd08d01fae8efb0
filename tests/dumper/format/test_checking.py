"""What threads find of the checksums of files: what the Python code finds, whatever is in them."""

from __future__ import annotations

import functools
import mmap
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumper.cli import main
from dumper.format import checking, frames
from dumper.format.checking import COMPILED, Checking, reference
from dumper.format.index import COLUMNS, IndexColumns
from dumper.format.prefixes import is_prefix_of, prefix_of, shared
from dumper.layout import SequenceSpan, TokenLayout
from dumper.readers.streams import scan as scanning
from dumper.readers.streams.scan import scan
from dumper.readers.streams.verify import Report, verify_data
from dumper.recording.recorder import Recorder
from tests.fuzz.mutations import changed_bytes

needs_compiler = pytest.mark.skipif(not COMPILED, reason="the module is not built: python setup.py build_ext -i")
FILE = "rank-00000.msgpack"
INTACT = ([], 0)
PART, LARGE = 3000, 500
"""Bytes, instead of millions: several threads have something to do in small files."""


def recorded(size: int = 64, **settings: Any) -> bytes:
    """The file of a run of a few steps; some values of some bytes, one of ``size`` elements in each step."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder()
        recorder.configure(enable=True, dir=folder, run="run", control=False, **settings)
        rng = np.random.default_rng(0)
        for step in range(3):
            recorder.step(layout=TokenLayout("decode", (SequenceSpan("request", step, 1),), 1))
            for layer in range(4):
                recorder.dump("hidden", np.repeat(rng.standard_normal(16), 8), dims="t", layer_id=layer)
            recorder.dump("of a request", float("nan"), request=float("nan"))
            recorder.dump("empty", np.zeros(0))
            recorder.dump("large", rng.standard_normal(size))
        recorder.close()
        return Path(folder, "run", FILE).read_bytes()


def record(
    position: int, fields: dict[str, Any], numbers: Sequence[Any], payloads: Sequence[bytes] = (b"12345678",)
) -> bytes:
    """The frame of a record as the dumper writes it, for where it will stand; ``numbers``: step, occurrence, order."""
    step, occurrence, order = numbers
    count, pairs = len(fields) + 3, b"".join(frames.encode_meta({key: fields[key]})[1:] for key in fields)
    meta = (bytes((0x80 | count,)) if count < 16 else b"\xde" + count.to_bytes(2, "big")) + pairs
    meta += b"\xa4step" + msgpack.packb(step) + b"\xaaoccurrence" + msgpack.packb(occurrence)
    meta += b"\xa5order\xcf" + order.to_bytes(8, "big")
    parts = [frames.encode_head(b"record", meta, len(payloads))]
    for payload in payloads:
        parts.append(frames.encode_padding(position + sum(map(len, parts)), len(payload)))
        parts += [payload, frames.encode_checksum(frames.checksum(payload))]
    return b"".join(parts)


def closed(data: bytes, change: Callable[[IndexColumns], object] = lambda columns: None) -> bytes:
    """The frames with an index, which says what a scan of them finds, but for a change."""
    columns, _ = scan(Path(FILE), data)
    change(columns)
    index = frames.encode_frame("index", columns.meta(), len(data), (columns.encode(),))
    return data + index + frames.encode_footer(len(data))


@functools.cache
def examples() -> list[bytes]:
    """Files of a few kinds."""
    parts = frames.encode_frame("header", {"format": "tensortap", "version": 1}, 0)
    for order, (size, count) in enumerate([(8, 1), (600, 3), (0, 0), (8, 2), (2000, 1), (1, 7)]):
        parts += record(len(parts), {"name": f"x{size}"}, (order // 2, 0, order), [bytes((size % 251,)) * size] * count)
    return [recorded(), recorded(compression="zstd"), recorded()[:4000], closed(parts), parts]


def with_checks(monkeypatch: pytest.MonkeyPatch, checks: Callable[..., Any], threads: int) -> None:
    monkeypatch.setattr(checking, "Checks", checks)
    monkeypatch.setattr(checking, "WORTH_A_THREAD", 1)
    # The Python code is for one thread.
    monkeypatch.setattr(checking, "available_cores", lambda: 1 if checks is reference.Checks else threads)


def small_checks(files: list[tuple[Any, bool]]) -> Any:
    """The compiled checks, in small parts; the Python code where there are none."""
    assert checking._compiled is not None
    return checking._compiled.Checks(files, PART, LARGE)


def verified(data: bytes) -> tuple[list[str], int, int, int]:
    """Everything that is said of a file: lines, damaged places, intact records, and bytes that were looked at."""
    report, done = Report(), list[int]()
    records = verify_data(FILE, data, report, done.append)
    return report.lines, report.damaged, records, sum(done)


@needs_compiler
@given(st.data(), st.integers(1, 4))
def test_compiled_and_not(data: st.DataObject, threads: int) -> None:
    content = data.draw(changed_bytes(examples()))
    with pytest.MonkeyPatch.context() as patched:
        with_checks(patched, reference.Checks, 1)
        expected = verified(content)
        walk = Checking([content])
        walk.finish(lambda done: None)
        expected_place, expected_outcome = walk.place(0), walk.outcome(0)
        for checks in (small_checks, checking._compiled.Checks):
            with_checks(patched, checks, threads)
            assert verified(content) == expected
            walk = Checking([content])
            walk.finish(lambda done: None)
            assert walk.place(0) == expected_place
            records, steps, damaged, prefixes = walk.outcome(0)
            assert (records, steps) == expected_outcome[:2]
            assert set(damaged) == set(expected_outcome.damaged)
            if prefixes is not None:  # the Python code knows an index in another form as well
                assert expected_outcome.prefixes is not None
                assert set(prefixes) == set(expected_outcome.prefixes)


def scanned(data: bytes) -> tuple[bytes, int, list[str], int]:
    """All that a scan finds, and how many bytes it says it has looked at."""
    done: list[int] = []
    columns, problems = scan(Path(FILE), data, done.append)
    return columns.encode(), len(columns), [problem.message for problem in problems], sum(done)


def looks_like_numbers(*orders: int) -> bytes:
    """Two records whose descriptions differ in text, which looks like the numbers at the end of metadata; ``orders``:
    their numbers."""
    data = b""
    for number, order in enumerate(orders):
        text = b"\xa4step\x01\xaaoccurrence\x00\xa5order\xcf" + number.to_bytes(8, "big")
        meta = b"\x85" + frames.encode_meta({"name": "x", "step": 1, "occurrence": 0, "order": order})[1:]
        meta += b"\xa4tags\x81\xa1t\xd9" + bytes((len(text),)) + text
        head = frames.encode_head(b"record", meta, 1)
        data += head + frames.encode_padding(len(data) + len(head), 1) + b"x"
        data += frames.encode_checksum(frames.checksum(b"x"))
    return data


@needs_compiler
@given(st.data())
def test_a_scan_finds_what_it_finds_without_the_compiled_module(data: st.DataObject) -> None:
    content = data.draw(changed_bytes([*examples(), looks_like_numbers(0, 0)]))
    with pytest.MonkeyPatch.context() as patched:
        found = scanned(content)
        patched.setattr(scanning, "_AT_ONCE", 1000)
        assert scanned(content) == found
        patched.setattr(scanning, "Scan", None)
        assert scanned(content) == found


@needs_compiler
def test_a_scan_decodes_what_it_does_not_know_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b""
    for order in range(10_000):
        name = "y" if order % 2000 == 999 else f"x{order % 500}"
        data += record(len(data), {"name": name, "tags": {"t": order % 500}}, (order // 100, 0, order))
    decode, decoded = frames.decode_meta, list[bytes]()
    monkeypatch.setattr(frames, "decode_meta", lambda meta: decoded.append(meta) or decode(meta))  # type: ignore[func-returns-value]
    columns, problems = scan(Path(FILE), data)
    assert (len(columns), len(columns.descriptors), problems) == (10_000, 501, [])
    assert len(decoded) <= 2 * 501


@needs_compiler
@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_index_is_compared_without_reading_records(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dumper.readers.streams.verify.scan", lambda *_: pytest.fail("all records were read"))
    data = examples()[number]
    assert verified(data)[:2] == INTACT
    with_checks(monkeypatch, small_checks, 3)
    assert verified(data)[:2] == INTACT


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("column", [*COLUMNS, "steps", "name", "tag", "fewer", "more", "fewer steps"])
def test_an_index_that_says_something_else(column: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_checks(monkeypatch, small_checks if compiled else reference.Checks, 2)

    def change(columns: IndexColumns) -> None:
        width = len(COLUMNS)
        if column in COLUMNS:
            columns.rows[2 * width + list(COLUMNS).index(column)] ^= 1
        elif column == "steps":
            columns.steps[1] += 1
        elif column == "fewer steps":
            del columns.steps[-1]
        elif column == "name":
            columns.descriptors[1]["name"] += "x"
        elif column == "tag":
            columns.descriptors[1]["tags"] = {"layer_id": 9}
        elif column == "fewer":
            del columns.rows[-width:]
        else:
            columns.rows.extend(columns.rows[-width:])

    whole = recorded()
    data = whole[: frames.decode_footer(whole, len(whole) - frames.FOOTER_BYTES)]
    assert verified(closed(data))[:2] == INTACT
    lists_others = column in ("offset", "fewer", "more")
    what = (
        "the index does not list the records that the file holds"
        if lists_others
        else "the index says something else of records than they do themselves"
    )
    assert verified(closed(data, change))[:2] == ([f"damaged: {FILE}: {what}"], 1)


STEPS = [None, 0, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1]
NUMBERS = [*STEPS, -1, -32, -33, -128, -129, -32768, -32769, -(1 << 31), -(1 << 31) - 1, -(1 << 63)]


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_numbers_of_every_length(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_checks(monkeypatch, small_checks if compiled else reference.Checks, 2)
    data = b""
    for order, step in enumerate(NUMBERS):
        for occurrence in (number for number in STEPS if number is not None and number < 1 << 32):
            data += record(len(data), {"name": "x"}, (step, occurrence, order))
    data = closed(data)
    assert verified(data)[:2] == INTACT
    walk = Checking([data])
    walk.finish(lambda done: None)
    assert walk.outcome(0).prefixes is not None
    for column, name in enumerate(COLUMNS):
        if name in ("step", "occurrence", "order"):
            for row in range(0, len(NUMBERS) * 8, 7):

                def change(columns: IndexColumns, place: int = row * len(COLUMNS) + column) -> None:
                    columns.rows[place] += 1 if columns.rows[place] < 1 << 31 else -1

                end = frames.decode_footer(data, len(data) - frames.FOOTER_BYTES)
                assert verified(closed(data[:end], change))[1] == 1


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_text_that_looks_like_the_numbers_of_a_record(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a part of the description, in which these records differ."""
    with_checks(monkeypatch, small_checks if compiled else reference.Checks, 2)
    assert scan(Path(FILE), looks_like_numbers(0, 0))[0].rows[1 :: len(COLUMNS)].tolist() == [0, 1]
    data = looks_like_numbers(0, 1)
    assert verified(closed(data))[:2] == INTACT

    def change(columns: IndexColumns) -> None:
        assert columns.rows[len(COLUMNS) + 1] == 1
        columns.rows[len(COLUMNS) + 1] = 0

    def forge(columns: IndexColumns) -> None:
        """The description is what the text would be with the numbers by which prefixes are tried."""
        change(columns)
        text = b"\xa4step\x07\xaaoccurrence\x0b\xa5order\xcf" + (1 << 40).to_bytes(8, "big")
        columns.descriptors[0]["tags"] = {"t": text.decode("utf-8", "backslashreplace")}

    for changed in (change, forge):
        assert verified(closed(data, changed))[1] == 1


DESCRIPTORS = st.dictionaries(
    st.text(max_size=3), st.none() | st.integers(0, 1 << 40) | st.text(max_size=40), max_size=20
)


@given(DESCRIPTORS, DESCRIPTORS)
def test_prefixes_and_descriptors(fields: dict[str, Any], others: dict[str, Any]) -> None:
    descriptor = {**fields, "name": "x"}
    meta = frames.decode_frame(record(0, descriptor, (3, 1, 2)), 0).meta
    prefix = prefix_of(meta)
    assert prefix is not None
    assert shared(prefix) == descriptor
    assert is_prefix_of(prefix, frames.encode_meta(descriptor))
    other = {**others, "name": "x"}
    assert is_prefix_of(prefix, frames.encode_meta(other)) == (list(other.items()) == list(descriptor.items()))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_damage_anywhere_in_a_file_of_many_parts(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    whole = recorded(1000)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(data))
            length = rng.choice((1, 8, PART + 100))
            data[at : at + length] = bytes(len(data[at : at + length]))
        with_checks(monkeypatch, reference.Checks, 1)
        expected = verified(bytes(data))
        with_checks(monkeypatch, small_checks, threads)
        assert verified(bytes(data)) == expected


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_large_payloads_and_several_files(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads of several pieces, mapped, of which one is damaged at its end and one in its middle."""
    monkeypatch.setattr(checking, "available_cores", lambda: threads)
    whole = recorded(700_000)
    files = []
    for number, at in enumerate((None, -1, 2_800_000, None)):
        data = bytearray(whole)
        if at is not None:
            frame = frames.decode_frame(data, int(scan(Path(FILE), whole)[0].rows[6 * 7]))
            payload = frame.payloads[0]
            data[payload.offset + at % payload.length] ^= 4
        path = tmp_path / f"rank-{number:05}.msgpack"
        path.write_bytes(data)
        with path.open("rb") as file:
            files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    walk = Checking(files)
    done: list[int] = []
    walk.finish(done.append)
    assert sum(done) == 4 * (len(whole) - frames.FOOTER_BYTES)
    assert [walk.place(number)[0] for number in range(4)] == [len(whole) - frames.FOOTER_BYTES] * 4
    assert [len(walk.outcome(number).damaged) for number in range(4)] == [0, 1, 1, 0]
    assert {walk.outcome(number).records for number in range(4)} == {21}
    assert [verified(bytes(file))[2] for file in files] == [21, 20, 20, 21]


@needs_compiler
def test_the_lock_is_let_go_and_no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "available_cores", lambda: 3)
    data = recorded(2_000_000)
    before = threading.active_count()
    walk = Checking([data])
    assert threading.active_count() >= before
    walk.finish(lambda done: None)
    assert threading.active_count() == before
    stopped = Checking([data])
    stopped.stop()
    stopped.finish(lambda done: None)
    assert threading.active_count() == before


def run_with(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def write(folder: Path, data: bytes) -> str:
    folder.mkdir()
    (folder / FILE).write_bytes(data)
    return str(folder)


def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    run = write(tmp_path / "run", recorded(2_000_000))
    code = """
import os, signal, sys
from dumper.format import checking
from dumper.cli import main
work = checking.Checks.work
class Interrupted:
    def __init__(self, files):
        self.checks = Checks(files)
    def __getattr__(self, name):
        return getattr(self.checks, name)
    def work(self, most, waits):
        if waits:
            os.kill(os.getpid(), signal.SIGINT)
        return self.checks.work(most, waits)
Checks, checking.Checks = checking.Checks, Interrupted
sys.exit(main(["verify", sys.argv[1]]))
"""
    done = run_with(code, run)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_files_are_read_while_the_rest_is_imported(tmp_path: Path) -> None:
    run = write(tmp_path / "run", recorded())
    code = """
import sys
from dumper.cli import main
from dumper.format import checking
init, seen = checking.Checking.__init__, []
def begin(self, files):
    seen.extend(sys.modules)
    init(self, files)
checking.Checking.__init__ = begin
code = main(["verify", sys.argv[1]])
late = {"numpy", "msgspec", "msgpack", "xxhash", "dataclasses", "dumper.reading.open", "dumper.readers"} & set(seen)
never = {"torch", "rich", "dumper.control", "dumper.convert", "polars"} & set(sys.modules)
print(code, sorted(late), sorted(never), "numpy" in sys.modules)
"""
    done = run_with(code, run)
    assert done.stdout.splitlines()[-1] == "0 [] [] True" if COMPILED else "0 "
    assert done.stderr == ""


def test_what_cannot_be_mapped_is_left_to_who_opens_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", recorded())
    (tmp_path / "run" / "rank-00001.msgpack").mkdir()
    os.mkfifo(tmp_path / "run" / "rank-00002.msgpack")
    (tmp_path / "run" / "rank-00003.msgpack").symlink_to("nowhere")
    (tmp_path / "run" / "rank-00004.msgpack").write_bytes(b"")
    (tmp_path / "run" / "rank-of-another-kind.msgpack").write_bytes(b"x" * 100)
    assert main(["verify", run]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1].startswith("6 files, 21 records: ")
    assert "rank-of-another-kind.msgpack" in said

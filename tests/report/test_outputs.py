"""What is written beside the printed report, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from comparator.cli import main
from comparator.report.html.columns import pack, short, shortened, to_columns, unpack
from comparator.report.html.page import Page
from comparator.report.html.table import Table
from tests.comparator.fakes import FakeRecord, FakeRun, one_request, values
from tests.comparator.recording import write_run
from tests.report.synthetic import report

STEPS = [4, 1]


def run(scale: float = 1.0, name: str = "out") -> FakeRun:
    records = [
        FakeRecord(name, values(rows, 8, seed=step) * scale, step=step, dims="t h", tags={"layer_id": 3})
        for step, rows in enumerate(STEPS)
    ]
    return FakeRun(records, {0: {"tp": (0, 1)}}, one_request(STEPS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"right": run(), "wrong": run(1.5), "other": run(name="else")}
    return {key: str(write_run(found, folder / key)) for key, found in made.items()}


def summary_of(page: Path) -> dict[str, object]:
    text = page.read_text(encoding="utf-8").partition('id="data-summary">')[2].partition("<")[0]
    return dict(unpack(text))


def test_a_page_beside_the_printed_report(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, page, later = (tmp_path / name for name in ("report.jsonl", "a b/report.html", "later.html"))
    assert main([runs["right"], runs["wrong"], "--report-path", str(lines), "-o", str(page)]) == 1
    assert f"report: {page}" in capsys.readouterr().err
    assert summary_of(page)["answer"]["outcome"] == "differ"  # type: ignore[index]
    assert main(["view", str(lines), "-o", str(later)]) == 0
    assert summary_of(later)["families"] == summary_of(page)["families"]
    assert "this page was made from the JSON lines alone" in later.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_leaves_verdict_and_exit_code(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name, code in (("right", 0), ("wrong", 1)):
        assert main([runs["right"], runs[name], "-q", "--html", str(tmp_path / "file" / "report.html")]) == code
        output = capsys.readouterr()
        assert "2 compared" in output.out
        assert "is not written: " in output.err
        assert "choose another place with --html" in output.err
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert main([runs["right"], runs["right"], "-q", "--html", str(tmp_path / "link")]) == 0
    assert (tmp_path / "file").read_text() == ""


def test_nothing_in_common_is_not_green(runs: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main([runs["right"], runs["other"], "-q", "-o", str(page)]) == 1
    assert summary_of(page)["answer"]["outcome"] == "nothing-compared"  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ("no json\n", "line 1: no JSON"),
        ('{"type": "config", "config": {}}\n{"type": "other"}\n', "line 2: no record of a report"),
        ('{"type": "summary"}\n', "line 1: no record of a report"),
        ("[1]\n", "line 1: no record of a report"),
    ],
)
def test_view_of_what_is_no_report(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.jsonl"
    if text is not None:
        path.write_text(text)
    assert main(["view", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert not path.with_suffix(".html").exists()


def test_view_of_a_report_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    lines = [json.dumps(record) for record in report(2, 1, fault=1)]
    path.write_text("\n".join(lines[:6]) + "\n" + lines[6][:50])
    assert main(["view", str(path)]) == 0
    assert summary_of(path.with_suffix(".html"))["answer"]["outcome"] == "incomplete"  # type: ignore[index]


def test_a_page_holds_the_worst_and_says_what_it_left_out() -> None:
    page = Page(Table(most_rows=10))
    for record in report(4, 2, fault=3):
        page.add(record)
    text = page.text()
    rows = unpack(text.partition('id="data-rows">')[2].partition("<")[0])
    assert len(rows["family"]) == 10
    assert "38 of 48 findings are not listed" in text
    assert sorted(rows["category"]) == [0, 0, 2, 2, 2, 2, 2, 2, 2, 2]
    page = Page(Table(most_rows=3))
    for record in report(4, 2, fault=3):
        page.add(record)
    rows = unpack(page.text().partition('id="data-rows">')[2].partition("<")[0])
    everything = Page()
    for record in report(4, 2, fault=3):
        everything.add(record)
    all_rows = unpack(everything.text().partition('id="data-rows">')[2].partition("<")[0])
    assert sorted(rows["times"]) == sorted(all_rows["times"])[-3:]


def test_columns_come_back() -> None:
    rows = [{"a": 1, "b": {"c": 0.123456, "d": None}}, {"a": 1, "b": {"c": float("nan"), "e": "x</script>"}}, {"b": {}}]
    columns = unpack(pack(to_columns(rows)))
    assert columns == {
        "rows": 3,
        "same": {},
        "columns": {"a": [1, 1, None], "b.c": [0.1235, None, None], "b.e": [None, "x</script>", None]},
    }
    assert to_columns([{"a": True, "b": 1.5}] * 2)["same"] == {"a": True, "b": 1.5}


def test_many_numbers_are_shortened_as_one_is() -> None:
    random = np.random.default_rng(1)
    found = (random.normal(size=5000) * 10.0 ** random.integers(-30, 30, 5000)).tolist()
    found += [0.0, -0.0, 1.0, 9999.6, 0.99996, 1e300, 5e-324, float("inf"), float("nan")]
    assert shortened([*found, 7, None, "x"]) == [*map(short, found), 7, None, "x"]

"""What is written beside the printed report, by the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from comparator.cli import main
from comparator.measure.picture import draw
from comparator.options import Options
from comparator.pipeline import begin
from comparator.prepared import prepare
from comparator.report.diagnosis_fields import StrongestTest
from comparator.report.html.columns import pack, short, shortened, to_columns, unpack
from comparator.report.html.page import Page
from comparator.report.html.table import Table
from comparator.report.junit import Junit
from comparator.report.markdown import Markdown
from comparator.report.sources import sources
from dumper.reading.open import open_run
from dumper.reading.protocol import TapCoverage
from testbed.synthetic_reports import report
from tests.comparator.fakes import values


def summary_of(page: Path) -> dict[str, object]:
    text = page.read_text(encoding="utf-8").partition('id="data-summary">')[2].partition("<")[0]
    return dict(unpack(text))


@pytest.mark.parametrize(
    ("number", "written"),
    [(np.float64(0.5), "0.5"), (np.float32(2), "2.0"), (np.int64(3), "3"), (np.float64("nan"), "null")],
)
def test_a_number_of_numpy_is_a_plain_number_in_a_report(number: float, written: str) -> None:
    """``np.float64`` is a float to mypy, so that one gets into a record unseen."""
    record = StrongestTest(name="flips", strength=number, value=1.0, threshold=2.0, where="")
    assert f'"strength":{written},' in record.model_dump_json()
    assert type(record.model_dump()["strength"]) in {float, int}


def test_a_page_beside_the_printed_report(
    recorded: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, page, later = (tmp_path / name for name in ("report.jsonl", "a b/report.html", "later.html"))
    assert main([recorded["right"], recorded["wrong"], "--report-path", str(lines), "-o", str(page)]) == 1
    assert f"report: {page}" in capsys.readouterr().err
    assert summary_of(page)["answer"]["outcome"] == "differ"  # type: ignore[index]
    assert main(["view", str(lines), "-o", str(later)]) == 0
    assert summary_of(later)["families"] == summary_of(page)["families"]
    assert "this page was made from the JSON lines alone" in later.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_leaves_verdict_and_exit_code(
    recorded: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name, code in (("right", 0), ("wrong", 1)):
        assert main([recorded["right"], recorded[name], "-q", "--html", str(tmp_path / "file" / "report.html")]) == code
        output = capsys.readouterr()
        assert "2 compared" in output.out
        assert "is not written: " in output.err
        assert "choose another place with --html" in output.err
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert main([recorded["right"], recorded["right"], "-q", "--html", str(tmp_path / "link")]) == 0
    assert (tmp_path / "file").read_text() == ""


def test_nothing_in_common_is_not_green(recorded: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert main([recorded["right"], recorded["other"], "-q", "-o", str(page)]) == 1
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


def test_a_picture_holds_what_was_aligned(recorded: dict[str, str]) -> None:
    prepared = prepare(open_run(Path(recorded["right"])), open_run(Path(recorded["wrong"])), Options())
    comparing = begin(prepared, draws=True)
    pictures = []
    for _ in comparing:
        assert comparing.picture is not None
        pictures.append(comparing.picture)
    found = pictures[0]
    left = values(4, 8, seed=0)
    assert (found.rows, found.channels, found.rows_drawn) == (4, 8, 4)
    assert found.tokens.error == pytest.approx([0.5] * 4)
    gap = left * 0.5
    assert found.channel.error == pytest.approx(np.linalg.norm(gap, axis=0) / np.sqrt((left**2).sum() / 8), rel=1e-5)
    assert sum(found.histogram.counts) + found.histogram.equal == 32
    row, channel = np.unravel_index(np.abs(gap).argmax(), gap.shape)
    around = found.around
    assert (around.row + around.worst[0], around.channel + around.worst[1]) == (row, channel)
    assert around.target[around.worst[0]][around.worst[1]] == pytest.approx(left[row, channel] * 1.5)
    assert around.tokens == [f"sequence 0, position {at}" for at in range(4)]
    assert all(plain.picture is None for plain in [begin(prepared)] for _ in plain)


def test_a_picture_of_what_is_not_finite_or_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comparator.measure.picture.MOST_ELEMENTS", 1000)
    left = np.arange(4000, dtype=np.float32).reshape(400, 10)
    right = left.copy()
    right[200, 3] = np.nan
    found = draw(left, right, (0,), lambda _: "")
    assert found is not None
    assert (found.rows, found.rows_drawn) == (400, 100)
    assert (found.around.row + found.around.worst[0] * 4, found.around.channel + found.around.worst[1]) == (200, 3)
    assert draw(left[:0], right[:0], (0,), lambda _: "") is None
    assert draw(left.astype(np.complex64), left.astype(np.complex64), (0,), lambda _: "") is None
    whole = draw(np.array([1, 2]), np.array([1, 2]), (), lambda _: "")
    assert whole is not None
    assert whole.histogram.counts == []
    many = draw(
        np.ones((600, 1), np.float32), np.ones((600, 1), np.float32) * np.linspace(1, 2, 600)[:, None], (0,), str
    )
    assert many is not None
    assert (many.tokens.each, len(many.tokens.error)) == (2, 300)
    assert many.tokens.error[-1] == pytest.approx(1.0)


def test_only_the_source_of_a_tap_is_read(tmp_path: Path) -> None:
    """A recording may name any file."""
    module = tmp_path / "package" / "model.py"
    module.parent.mkdir()
    module.write_text("".join(f"line {number}\n" for number in range(1, 31)))
    secret = tmp_path / "secret.py"
    secret.write_text("secret\n" * 30)

    def taps(file: Path, tap: str) -> list[str]:
        covered = TapCoverage(f"{tap}#1:out", "out", 0, str(file), 20, 1)
        run = SimpleNamespace(taps=[covered], headers={})
        return list(sources(run, run)[covered.id].lines)  # type: ignore[arg-type]

    assert taps(module, "package.model.Layer.forward")[6] == "line 20"
    assert taps(secret, "package.model.Layer.forward") == []
    assert taps(tmp_path / "package" / ".." / "secret.py", "package.model.Layer.forward") == []
    assert taps(Path("/etc/passwd"), "etc.passwd.f") == []


MARKUP = "<b>&amp;]]>\x00\x1b[1m|`@someone`[x](http://y)\ud800"


def test_junit(recorded: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    assert main([recorded["right"], recorded["wrong"], "-q", "--junit", str(path)]) == 1
    suite = ElementTree.parse(path).getroot()
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "3", "errors": "0", "skipped": "0",
    }  # fmt: skip
    assert [case.get("name") for case in suite.iter("testcase")] == [
        "verdict",
        "out layer_id=3 step=0",
        "out layer_id=3 step=1",
    ]
    assert "The runs do not agree" in str(suite.findtext("system-out"))
    assert main([recorded["right"], recorded["right"], "-q", "--junit", str(path)]) == 0
    assert ElementTree.parse(path).getroot().get("failures") == "0"
    assert main([recorded["right"], recorded["other"], "-q", "--junit", str(path)]) == 1
    suite = ElementTree.parse(path).getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "4")


def odd_report() -> list[dict[str, object]]:
    """A report whose names and messages hold what XML and Markdown would take for their own."""
    records = list(report(2, 1, fault=1, taps=(MARKUP, "x|y", "z")))
    records[4]["infos"] = [{"kind": "warning", "category": "scaled", "message": MARKUP}]
    records[-1]["errors"] = [{"kind": "error", "category": "lost", "message": MARKUP}]
    return records


def test_junit_of_odd_names() -> None:
    junit = Junit()
    for record in odd_report():
        junit.add(record)
    suite = ElementTree.fromstring(junit.text())
    assert "<b>&amp;]]>\ufffd\ufffd[1m|`@someone`[x](http://y)\ufffd layer_id=0 step=0" in [
        case.get("name") for case in suite.iter("testcase")
    ]


def test_markdown(recorded: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    assert main([recorded["right"], recorded["wrong"], "-q", "--markdown", str(path)]) == 1
    text = path.read_text(encoding="utf-8")
    assert text.startswith("## ❌ The runs do not agree\n")
    assert "| out layer\\_id=3 step=0 | failed |" in text
    markdown = Markdown()
    for record in odd_report():
        markdown.add(record)
    shown = MarkdownIt("gfm-like", {"linkify": False}).render(markdown.text())
    assert "<b>" not in shown
    assert "<a " not in shown
    assert "<code>" not in shown
    cells = re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
    assert cells
    assert {row.count("<td") + row.count("<th") for row in cells} == {4}


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_pictures(recorded: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib here; requirements/dev.txt has it")
    folder = tmp_path / "some" / "pictures"
    assert main([recorded["right"], recorded["wrong"], "-q", "--png", str(folder)]) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "0000-out_layer_id=3_step=0.png",
        "0001-out_layer_id=3_step=1.png",
    ]
    assert all(map(is_picture, folder.iterdir()))
    assert f"pictures: 2 in {folder}" in capsys.readouterr().err
    every, tokens = tmp_path / "every", tmp_path / "tokens.png"
    flags = ["--viz-bundle-details", "--viz-output-dir", str(every), "--visualize-per-token", str(tokens)]
    assert main([recorded["right"], recorded["right"], "-q", *flags]) == 0
    assert len(list(every.iterdir())) == 2
    assert is_picture(tokens)
    assert main([recorded["right"], recorded["right"], "-q", "--png", str(tmp_path / "none")]) == 0
    assert "no pictures" in capsys.readouterr().err


def test_pictures_without_matplotlib(
    recorded: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([recorded["right"], recorded["right"], "-q", "--png", str(tmp_path / "none")]) == 0
    assert "pictures need matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_pictures_that_cannot_be_written(
    recorded: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib here; requirements/dev.txt has it")
    (tmp_path / "file").touch()
    flags = ["--png", str(tmp_path / "file"), "--visualize-per-token", str(tmp_path / "file" / "x.png")]
    assert main([recorded["right"], recorded["wrong"], "-q", *flags]) == 1
    said = capsys.readouterr()
    assert "pictures are not written" in said.err
    assert "is not written" in said.err
    assert "2 compared" in said.out


def test_pictures_follow_no_link(recorded: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib here; requirements/dev.txt has it")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "folder").mkdir()
    for link in ("folder/0000-out_layer_id=3_step=0.png", "tokens.png"):
        (tmp_path / link).symlink_to(tmp_path / "precious")
    flags = ["--png", str(tmp_path / "folder"), "--visualize-per-token", str(tmp_path / "tokens.png")]
    assert main([recorded["right"], recorded["wrong"], "-q", *flags]) == 1
    assert (tmp_path / "precious").read_text() == "mine"
    assert capsys.readouterr().err.count("a link or something else is there") == 2

"""One browser for all tests of pages, and pages of synthetic reports, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from comparator.cli import main
from comparator.report.html.page import Page
from testbed.synthetic_reports import Json, report
from tests.comparator.diagnosis.simulator import Kernels
from tests.comparator.fakes import FakeRecord, FakeRun, one_request, values
from tests.comparator.recording import write_run
from tests.comparator.test_analysis import MODEL, as_run
from tests.report.two_ranks import half_scaled, two_ranks


def make_page(records: Iterator[Json] | list[Json], path: Path) -> Path:
    """Write the page of a report."""
    page = Page()
    for record in records:
        page.add(record)
    path.write_text(page.text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The browser, without a complaint on its console that was not read."""
    pytest.importorskip("selenium", reason="no selenium here; requirements/dev.txt has it")
    from testbed.browser import browser, why_no_browser

    missing = why_no_browser()
    if missing is not None:
        pytest.skip(missing)
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs on disk: ``right``, ``wrong`` (scaled by 1.5), and ``other`` without a name in common."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"right": run(), "wrong": run(1.5), "other": run(name="else")}
    return {key: str(write_run(found, folder / key)) for key, found in made.items()}


def run(scale: float = 1.0, name: str = "out") -> FakeRun:
    """Two passes, of 4 tokens and of one, with a tensor of 8 channels."""
    steps = [4, 1]
    records = [
        FakeRecord(name, values(rows, 8, seed=step) * scale, step=step, dims="t h", tags={"layer_id": 3})
        for step, rows in enumerate(steps)
    ]
    return FakeRun(records, {0: {"tp": (0, 1)}}, one_request(steps))


@pytest.fixture(scope="session")
def pictured(recorded: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the command line makes of ``right`` and ``wrong``, with pictures of the tensors."""
    path = tmp_path_factory.mktemp("page") / "pictured.html"
    assert main([recorded["right"], recorded["wrong"], "-q", "-o", str(path)]) == 1
    return path


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model with experts on one rank against two ranks, with faults in one rank's share of layer 1 and in
    expert 3 of layer 2; one failure has pictures."""
    folder = tmp_path_factory.mktemp("mixture")
    half = Kernels(dtype="float16")
    one = write_run(as_run(MODEL.run(half)), folder / "one")
    two = write_run(two_ranks(MODEL.run(half, half_scaled)), folder / "two")
    path = folder / "mixture.html"
    assert main([str(one), str(two), "-q", "--pictures", "1", "-o", str(path)]) == 1
    return path


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison of 8 layers and 3 steps, with a fault in layer 3."""
    return make_page(report(8, 3, fault=3), tmp_path_factory.mktemp("page") / "faulty.html")

"""One browser for all tests of pages, and pages of synthetic reports, each made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from comparator.report.html.page import Page
from tests.report.synthetic import Json, report


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
    from tests.report.browser import browser, why_no_browser

    missing = why_no_browser()
    if missing is not None:
        pytest.skip(missing)
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison of 8 layers and 3 steps, with a fault in layer 3."""
    return make_page(report(8, 3, fault=3), tmp_path_factory.mktemp("page") / "faulty.html")

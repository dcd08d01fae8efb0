"""Put a page together: the template, the styles and scripts that stand in it, and the data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from comparator.measure.picture import Picture
from comparator.report.answer import RunRecords, answer, issue_text, label_of
from comparator.report.html.columns import pack, shortened
from comparator.report.html.table import CATEGORIES, CHUNK, JUDGED, Table
from comparator.report.runs import earlier_failure
from comparator.report.sources import Sources
from comparator.report.strips import TokenStrips

FOLDER = Path(__file__).parent
STYLES = ("vendor/uPlot.min.css", "templates/page.css")
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "scripts/dom.js",
    "scripts/data.js",
    "scripts/search.js",
    "scripts/colour.js",
    "scripts/map.js",
    "scripts/list.js",
    "scripts/charts.js",
    "scripts/tensor.js",
    "scripts/tokens.js",
    "scripts/axes.js",
    "scripts/routing.js",
    "scripts/coverage.js",
    "scripts/main.js",
)
"""In the order in which they run; each defines what those behind it use."""
MOST_NAMES = 500
"""Rows of the accounts that a page lists."""


class Page:
    """Takes the records of a report, as JSON objects, and makes the page of them."""

    def __init__(self, table: Table | None = None) -> None:
        self._records = RunRecords()
        self._table = Table() if table is None else table
        self._first: Mapping[str, Any] | None = None
        self._first_row = -1
        self._pictures: dict[int, str] = {}
        self._failed = 0
        self._sources: Sources = {}
        self._strips: TokenStrips | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one record, in the order of the report."""
        if "category" not in record:
            self._records.add(record)
            return
        row = self._last_row = self._table.add(record)
        if record["category"] == "failed":
            self._failed += 1
            if earlier_failure(self._first, record) is record:
                self._first, self._first_row = record, row

    def draw(self, picture: Picture) -> None:
        """Take the picture of the finding that came last."""
        self._pictures[self._last_row] = pack(_short(asdict(picture)))

    def explain(self, sources: Sources) -> None:
        """Take where taps are in the source."""
        self._sources = sources

    def show_tokens(self, strips: TokenStrips) -> None:
        """Take what is known of single tokens."""
        self._strips = strips

    def text(self, *, missing: Sequence[str] = ()) -> str:
        """The page. ``missing`` says what it does not have, and why, one sentence each."""
        from jinja2 import Environment, FileSystemLoader

        said = answer(self._records, self._first)
        table = self._table.finish()
        left_out = table.total - len(table.rows)
        without = self._failed - len(self._pictures)
        if self._pictures and without > 0:
            missing = (
                *missing,
                f"pictures of {without} of {self._failed} failures: the page holds those of the first ones, to stay "
                "small and quick to make; --pictures N draws N of them",
            )
        if left_out:
            missing = (
                *missing,
                f"{left_out} of {table.total} findings are not listed one by one: the page holds the worst of what did "
                "not pass, and of what passed the first; the map has all of them",
            )
        summary = {
            "answer": asdict(said),
            "copy": issue_text(said, self._records),
            "first": self._first_row,
            "total": table.total,
            "rows": len(table.rows),
            "categories": CATEGORIES,
            "judged": JUDGED,
            "chunk": CHUNK,
            "names": self._table.names.values,
            "tags": self._table.tags.values,
            "texts": self._table.texts.values,
            "families": self._table.families_as_columns(),
        }
        every_row = {
            "number": None if not left_out else table.rows.tolist(),
            "ranks_of": self._table.ranks.values,
            "bundles": self._table.plans(),
            "pictures": {str(row): at for at, row in enumerate(self._pictures)},
            **table.columns,
        }
        run = {
            "ranks": self._records.ranks,
            "accounts": self._records.accounts[:MOST_NAMES],
            "accounts_left_out": max(0, len(self._records.accounts) - MOST_NAMES),
            "notes": self._records.notes,
            "sources": {tap: asdict(source) for tap, source in self._sources.items()},
            "flips": (self._records.diagnosis or {}).get("flips", []),
            "config": {key: value for key, value in self._records.config.items() if value not in (None, [], "", False)},
        }
        styles, scripts = _text(STYLES), _text(SCRIPTS)
        templates = Environment(loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, trim_blocks=True)
        return templates.get_template("page.html.j2").render(
            answer=said,
            baseline=self._records.path("baseline"),
            target=self._records.path("target"),
            first=None if self._first is None else label_of(self._first, step=True),
            missing=missing,
            styles=styles,
            scripts=scripts,
            style_hash=_hash(styles),
            script_hash=_hash(scripts),
            summary=pack(summary),
            blocks={
                "rows": pack(every_row),
                "run": pack(run),
                "tokens": pack(None if self._strips is None else _short(asdict(self._strips))),
            },
            details=table.blocks,
            pictures=list(self._pictures.values()),
        )


def _short(value: Any) -> Any:
    """A value of JSON with floats of few digits."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return shortened(value) if any(type(one) is float for one in value) else [_short(one) for one in value]
    return value


@cache
def _text(names: Sequence[str]) -> str:
    return "\n".join((FOLDER / name).read_text(encoding="utf-8").strip() for name in names)


def _hash(text: str) -> str:
    """As a content security policy names what may run or apply."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

"""The table of findings of a page: narrow columns of all rows, and everything else in blocks that are opened later.

A *family* is a name with its tags; it has one cell of the map. A row is one finding: a family in one step.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.report.html.columns import pack, short, shortened, to_columns
from comparator.report.tolerance import times_tolerance
from comparator.verdict.taps import LAYER_TAGS

CATEGORIES = ("passed", "skipped", "failed", "errored")
"""From good to bad; a page has their numbers."""
JUDGED = ("", "within-rounding", "not-judged", "after-a-routing-flip", "inherited-from", "introduced-here")
"""What the analysis says of a tap, in the order in which it stands out; a page has their numbers."""
MOST_ROWS = 200_000
"""Findings that a page holds one by one."""
CHUNK = 1024
"""Findings of one block of details."""
NO_STEP = -1

_OF_FILES = ("rank", "parallel_info", "shape", "dtype", "kept", "reason")
_IN_COLUMNS = frozenset({"name", "tags", "location", "category", "type"})


class Interned:
    """Values that come again and again, each kept once and told by its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.values: list[Any] = []

    def number(self, value: Any) -> int:
        key = repr(value)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


@dataclass
class Family:
    """All findings of one name and its tags."""

    name: int
    layer: int | None
    tags: int
    """Its tags, that of the layer without its value."""
    first: int
    """Its first finding."""
    counts: list[int] = field(default_factory=lambda: [0] * len(CATEGORIES))
    times: float | None = None
    """The most of its findings."""
    judged: int = 0
    source: int | None = None
    """Where its error was introduced, as text."""
    tap: int | None = None
    flipped: bool = False


@dataclass
class Details:
    """Blocks of details, packed as they fill."""

    blocks: list[str] = field(default_factory=list)
    _open: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> int:
        """Keep a row; returns its number: block times ``CHUNK`` plus place."""
        number = len(self.blocks) * CHUNK + len(self._open)
        self._open.append(row)
        if len(self._open) == CHUNK:
            self.close()
        return number

    def close(self) -> None:
        """Pack what is still open."""
        if self._open:
            self.blocks.append(pack(to_columns(self._open)))
            self._open = []


class Table:
    """Takes findings, as JSON objects, in the order of execution."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._most = most_rows
        self.names, self.tags, self.texts, self.bundles, self.ranks = (Interned() for _ in range(5))
        self.families: dict[str, Family] = {}
        self._numbers: dict[str, int] = {}
        self._family, self._step, self._detail, self._of_ranks = (array("q") for _ in range(4))
        self._category = array("b")
        self._times, self._rel, self._largest = (array("d") for _ in range(3))
        self._passed, self._other = Details(), Details()
        self._kept_passed = self._kept_other = 0

    def __len__(self) -> int:
        return len(self._family)

    def add(self, finding: Mapping[str, Any]) -> int:
        """Take one finding; returns its number."""
        row = len(self)
        family = self._family_of(finding, row)
        category = CATEGORIES.index(finding["category"])
        times = times_tolerance(finding)
        family.counts[category] += 1
        if times is not None:
            family.times = times if family.times is None else max(family.times, times)
        self._judge(family, finding)
        diff = finding.get("diff") or {}
        step = (finding.get("location") or {}).get("step")
        self._step.append(NO_STEP if step is None else step)
        self._category.append(category)
        for column, value in (
            (self._times, times),
            (self._rel, diff.get("rel_diff")),
            (self._largest, diff.get("max_abs_diff")),
        ):
            column.append(math.nan if value is None else value)
        self._of_ranks.append(self.ranks.number(_ranks(finding)))
        self._detail.append(self._keep(finding, category))
        return row

    def _family_of(self, finding: Mapping[str, Any], row: int) -> Family:
        tags = dict(finding.get("tags") or {})
        key = repr((finding["name"], tags))
        if key not in self.families:
            layer_tag = next((tag for tag in LAYER_TAGS if str(tags.get(tag, "")).isdecimal()), None)
            layer = None if layer_tag is None else int(tags[layer_tag])
            same_in_layers = tags if layer_tag is None else {**tags, layer_tag: None}
            self._numbers[key] = len(self.families)
            self.families[key] = Family(
                self.names.number(finding["name"]), layer, self.tags.number(same_in_layers), row
            )
        self._family.append(self._numbers[key])
        return self.families[key]

    def _judge(self, family: Family, finding: Mapping[str, Any]) -> None:
        if finding.get("tap"):
            family.tap = self.texts.number(finding["tap"])
        analysis = finding.get("analysis")
        if not isinstance(analysis, Mapping):
            return
        judged = analysis.get("judged", "")
        family.judged = max(family.judged, JUDGED.index(judged) if judged in JUDGED else 0)
        family.flipped |= bool(analysis.get("rows_left_out")) or judged == "after-a-routing-flip"
        if analysis.get("source"):
            family.source = self.texts.number(analysis["source"])

    def _keep(self, finding: Mapping[str, Any], category: int) -> int:
        """Number of the details of a finding: of the two piles, 2 x number, plus 1 for what did not pass; -1: none."""
        passed = category == 0
        kept = self._kept_passed if passed else self._kept_other
        if kept >= self._most:
            return -1
        if passed:
            self._kept_passed += 1
        else:
            self._kept_other += 1
        row = {key: value for key, value in finding.items() if key not in _IN_COLUMNS}
        row["raw_bundle_info"] = self._bundle(row.get("raw_bundle_info"))
        if passed and (row.get("target") or {}).get("stats") == (row.get("baseline") or {}).get("stats"):
            row["target"] = {**(row.get("target") or {}), "stats": None}
        pile = self._passed if passed else self._other
        return 2 * pile.add(row) + (not passed)

    def _bundle(self, bundle: Mapping[str, Any] | None) -> int | None:
        """What ranks hold of a tensor is the same in every step and layer, but for the step and the name of a file."""
        if bundle is None:
            return None
        key = [
            (side, found["dims"], [[file[key] for key in _OF_FILES] for file in found["files"]])
            for side, found in bundle.items()
            if found is not None
        ]
        return self.bundles.number(key)

    def finish(self) -> FinishedTable:
        """All of the table, ready for a page: what did not pass first chosen, the worst of it, then what passed."""
        self._passed.close()
        self._other.close()
        chosen = self._chosen()
        detail = np.frombuffer(self._detail, np.int64)[chosen] if len(self) else np.zeros(0, np.int64)
        blocks, renumbered = self._blocks(detail)
        columns = {
            "family": self._column(self._family, chosen),
            "step": self._column(self._step, chosen),
            "category": self._column(self._category, chosen),
            "times": self._numbers_of(self._times, chosen),
            "rel": self._numbers_of(self._rel, chosen),
            "max_abs": self._numbers_of(self._largest, chosen),
            "ranks": self._column(self._of_ranks, chosen),
            "detail": renumbered.tolist(),
        }
        return FinishedTable(len(self), chosen, columns, blocks)

    def _chosen(self) -> npt.NDArray[np.int64]:
        everything = np.arange(len(self))
        if len(self) <= self._most:
            return everything
        category = np.frombuffer(self._category, np.int8)
        times = np.nan_to_num(np.frombuffer(self._times, np.float64), nan=np.inf)
        bad = everything[category > 0]
        worst = bad[np.argsort(-times[bad], kind="stable")][: self._most]
        good = everything[category == 0][: self._most - len(worst)]
        return np.sort(np.concatenate([worst, good]))

    def _blocks(self, detail: npt.NDArray[np.int64]) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The blocks that the chosen rows need, one pile after the other, and the rows' places in them."""
        piles = (self._passed.blocks, self._other.blocks)
        blocks: list[str] = []
        renumbered = np.full(len(detail), -1, np.int64)
        for pile, found in enumerate(piles):
            own = (detail >= 0) & (detail % 2 == pile)
            used = np.unique(detail[own] // 2 // CHUNK)
            place = {int(block): len(blocks) + at for at, block in enumerate(used)}
            blocks.extend(found[int(block)] for block in used)
            numbers = detail[own] // 2
            moved = np.array([place[int(number)] for number in numbers // CHUNK], np.int64)
            renumbered[own] = moved * CHUNK + numbers % CHUNK
        return blocks, renumbered

    @staticmethod
    def _column(values: Sequence[int], chosen: npt.NDArray[np.int64]) -> list[int]:
        return [values[row] for row in chosen.tolist()]

    @staticmethod
    def _numbers_of(values: Sequence[float], chosen: npt.NDArray[np.int64]) -> list[float | int | None]:
        return shortened([values[row] for row in chosen.tolist()], 3)

    def plans(self) -> list[dict[str, Any]]:
        """What ranks hold of a tensor, by its number: per side its dims and the pieces."""
        return [
            {
                side: {"dims": dims, "files": [dict(zip(_OF_FILES, file, strict=True)) for file in files]}
                for side, dims, files in bundle
            }
            for bundle in self.bundles.values
        ]

    def families_as_columns(self) -> dict[str, Any]:
        """One entry per family, in the order of execution."""
        found = self.families.values()
        return {
            "name": [family.name for family in found],
            "layer": [family.layer for family in found],
            "tags": [family.tags for family in found],
            "first": [family.first for family in found],
            "counts": [family.counts for family in found],
            "times": [short(family.times, 3) for family in found],
            "judged": [family.judged for family in found],
            "source": [family.source for family in found],
            "tap": [family.tap for family in found],
            "flipped": [int(family.flipped) for family in found],
        }


@dataclass(frozen=True)
class FinishedTable:
    """What a page carries of the findings."""

    total: int
    """Findings there were."""
    rows: npt.NDArray[np.int64]
    """Numbers of those that the page holds one by one."""
    columns: Mapping[str, Sequence[Any]]
    blocks: Sequence[str]
    """Packed details."""


def _ranks(finding: Mapping[str, Any]) -> list[int]:
    """The ranks that recorded something of a finding."""
    bundle = finding.get("raw_bundle_info") or {"x": finding.get("available_bundle_info")}
    found = {file["rank"] for side in bundle.values() if side for file in side["files"] if file.get("rank") is not None}
    return sorted(found)

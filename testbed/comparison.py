"""Runs the comparator's command line, in this process, and gives what it said as values."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from comparator.cli import main


@dataclass(frozen=True)
class Outcome:
    """What the comparator said."""

    exit_code: int
    records: tuple[dict[str, Any], ...]
    """The lines of its report."""
    messages: str
    """Its standard error."""

    def record(self, kind: str) -> dict[str, Any]:
        """The last record of a type. Raises RuntimeError when there is none."""
        found = [record for record in self.records if record["type"] == kind]
        if not found:
            raise RuntimeError(f"the comparator ended with {self.exit_code} and no {kind}:\n{self.messages}")
        return found[-1]

    @property
    def summary(self) -> dict[str, Any]:
        return self.record("summary")

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        return [record for record in self.records if "category" in record]

    def named(self, category: str) -> list[str]:
        """The tensors of a category in the order of the model's execution, as ``attn_output layer_id=0 step=0``."""
        return [label(record) for record in self.comparisons if record["category"] == category]

    @property
    def all_passed(self) -> bool:
        summary = self.summary
        return self.exit_code == 0 and summary["passed"] > 0 and summary["passed"] == summary["total"]


def label(record: dict[str, Any]) -> str:
    tags = {key: value for key, value in record["tags"].items() if key != "step"}
    step = record["location"]["step"]
    if step is not None:
        tags["step"] = step
    return " ".join([record["name"], *(f"{key}={value}" for key, value in tags.items())])


def compare(baseline: Path, target: Path, flags: tuple[str, ...] = (), page: Path | None = None) -> Outcome:
    """Compares and reads the report; ``page`` is where the report as a page goes."""
    output = ["--output-format", "json", "--report-path", "", *([] if page is None else ["--html", str(page)])]
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(baseline), str(target), *flags, *output])
    messages = [line for line in err.getvalue().splitlines(keepends=True) if not line.startswith("report: ")]
    return Outcome(code, tuple(map(json.loads, out.getvalue().splitlines())), "".join(messages))

"""Read the JSON lines of an earlier comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparator.errors import ComparatorError
from tensortap.progress import Progress, silent

_FIELDS: dict[str, tuple[str, ...]] = {
    "config": ("config",),
    "rank_info": ("label", "rows"),
    "input_ids": ("label", "rows"),
    "log": ("errors", "infos"),
    "diagnosis": ("words",),
    "accounts": ("names",),
    "summary": ("passed", "failed", "skipped", "errored", "exit_code"),
    "comparison_tensor": ("name", "category", "baseline", "target"),
    "comparison_skip": ("name", "category"),
    "comparison_non_tensor": ("name", "category"),
    "comparison_error": ("name", "category"),
}
"""What a record of each type cannot do without. A number that is null was not finite."""


def read_report(path: Path, progress: Progress = silent) -> Iterator[dict[str, Any]]:
    """The records of a report as JSON objects, in order. ``progress`` shows how much of the file is read.

    Raises ComparatorError for a file that cannot be read or is no report of this comparator. A last line that was cut
    off is left out: a report may be of a comparison that was stopped.
    """
    try:
        with (
            path.open(encoding="utf-8", errors="surrogateescape") as file,
            progress("reading", path.stat().st_size) as advance,
        ):
            number = 0
            for number, line in enumerate(file, 1):
                advance(len(line))
                record = _parse(path, number, line)
                if record is not None:
                    yield record
    except OSError as error:
        raise ComparatorError(f"{path}: {error.strerror}") from None
    if not number:
        raise ComparatorError(f"{path} is empty; --report-path FILE makes a report")


def _parse(path: Path, number: int, line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        if number > 1 and not line.endswith("\n"):
            return None
        raise ComparatorError(f"{path}, line {number}: no JSON; {_EXPECTED}") from None
    kind = str(record.get("type")) if isinstance(record, dict) else ""
    if kind not in _FIELDS or not all(field in record for field in _FIELDS[kind]):
        if kind in _OF_SGLANG and set(record) >= _OF_SGLANG[kind]:
            raise ComparatorError(
                f"{path} is a report in SGLang's form, which holds less than is needed here; compare once more with "
                "--report-schema tensortap"
            )
        raise ComparatorError(f"{path}, line {number}: no record of a report of this comparator; {_EXPECTED}")
    assert isinstance(record, dict)
    return record


_OF_SGLANG: dict[str, frozenset[str]] = {
    "summary": frozenset({"total", "passed", "failed", "skipped", "errored"}),
    "comparison_tensor": frozenset({"name", "baseline", "target"}),
    "comparison_skip": frozenset({"name", "reason"}),
    "comparison_non_tensor": frozenset({"name", "baseline_value", "target_value"}),
    "comparison_error": frozenset({"name", "exception_message"}),
}
"""By what records are known that lack what is ours."""
_EXPECTED = "a report is what --report-path or --output-format json of python -m comparator writes"

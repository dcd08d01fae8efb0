"""The JSON schema of one line of a report. ``python -m comparator.report.schema`` writes the file that ships."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec

from comparator.report.records import ReportRecord

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")


def json_schema() -> dict[str, Any]:
    """The schema, from the types of the records. A number that is NaN or infinite is null in JSON."""
    kinds = get_args(ReportRecord)
    lines, definitions = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    schema: dict[str, Any] = {"oneOf": list(lines), "$defs": dict(sorted(definitions.items()))}
    _allow_null_numbers(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tensortap report line", **schema}


def _allow_null_numbers(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("type") == "number":
            node["type"] = ["number", "null"]
        for value in node.values():
            _allow_null_numbers(value)
    elif isinstance(node, list):
        for value in node:
            _allow_null_numbers(value)


if __name__ == "__main__":
    SCHEMA_PATH.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")

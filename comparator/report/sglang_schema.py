"""The report as SGLang's comparator writes it: its record types and fields, and no others.

Programs that read its JSON lines with its own record types refuse what these do not have. Fields and kinds are those
of SGLang 0.5.23 (``comparator/output_types.py`` there).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from comparator.report.records import AccountsRecord, DiagnosisRecord, ErroredComparison, ReportRecord

_NOTES = ("errors", "infos")
_TABLE = ("label", "rows")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "config": ("config",),
    "rank_info": _TABLE,
    "input_ids": _TABLE,
    "log": (),
    "comparison_tensor": (
        "location",
        "name",
        "baseline",
        "target",
        "unified_shape",
        "shape_mismatch",
        "diff",
        "diff_downcast",
        "downcast_dtype",
        "traced_plan",
        "replicated_checks",
        "raw_bundle_info",
    ),
    "comparison_skip": (
        "location",
        "name",
        "reason",
        "available_side",
        "available_tensor_info",
        "available_bundle_info",
    ),
    "comparison_non_tensor": (
        "location",
        "name",
        "baseline_value",
        "target_value",
        "baseline_type",
        "target_type",
        "values_equal",
    ),
    "comparison_error": ("location", "name", "exception_type", "exception_message", "traceback_str"),
    "summary": ("total", "passed", "failed", "skipped", "errored"),
}
"""Per type the fields that its record has there, beside ``type`` and the notes."""
_OURS: Mapping[str, frozenset[str]] = {
    "stats": frozenset({"nan_count", "inf_count"}),
    "diff": frozenset({"relative_l2", "scale", "differing", "max_diff_token", "max_token_rel"}),
    "diff_downcast": frozenset({"relative_l2", "scale", "differing", "max_diff_token", "max_token_rel"}),
    "replicated_checks": frozenset({"side"}),
    "files": frozenset({"step", "kept", "reason"}),
}
"""Per key what ours holds on top, in the mapping or the list of mappings under that key."""
_CATEGORIES = {
    "other-folder": "auto_descend",
    "no-batch-records": "aux_tensors_missing",
    "layout-assumed": "layout_detection_fallback",
    "axes-not-aligned": "axis_aligner_dim_mismatch",
    "unreadable-file": "load_failed",
    "unreadable": "load_failed",
}
"""What its logs call what has another name here."""
_EXCEPTIONS = {"rows-of-unknown-tokens": ("AssertionError", "Expected exactly 1 non-empty dp_rank")}
"""The types that its errors have there, and the words that they are recognised by."""
DIMS_HINT = (
    "Hint: dims can be given without recording again: --override-dims 'NAME:t h[tp]', --override-baseline-dims and "
    "--override-target-dims for one side, --override-config FILE for many."
)
"""What the traceback of an error begins with."""


def to_sglang(record: ReportRecord) -> dict[str, Any] | None:
    """A record with the fields that SGLang's report has; None for a record of a type that it has not."""
    if isinstance(record, AccountsRecord | DiagnosisRecord):
        return None
    whole = json.loads(record.model_dump_json())
    line = {"type": whole["type"], **{key: whole.get(key) for key in _FIELDS[record.type]}}
    # There is no warning there: what does not make a comparison fail is an info.
    for field in _NOTES:
        line[field] = [_note(note) for note in whole[field]]
    if isinstance(record, ErroredComparison):
        if record.reason in _EXCEPTIONS:
            line["exception_type"], words = _EXCEPTIONS[record.reason]
            line["exception_message"] = f"{words}: {record.exception_message}"
        error = f"{line['exception_type']}: {line['exception_message']}"
        trace = record.traceback_str if error in record.traceback_str else f"{record.traceback_str}\n{error}"
        line["traceback_str"] = f"\n{DIMS_HINT}\n\n{trace.lstrip()}"
    if line["type"] == "comparison_tensor" and None in (line["raw_bundle_info"] or {}).values():
        line["raw_bundle_info"] = None
    found: dict[str, Any] = _without_ours(line)
    return found


def _note(note: dict[str, str]) -> dict[str, str]:
    kind = "info" if note["kind"] == "warning" else note["kind"]
    return {**note, "kind": kind, "category": _CATEGORIES.get(note["category"], note["category"])}


def to_json(record: ReportRecord) -> str | None:
    """``to_sglang`` as one line; NaN and infinity, which JSON does not have, are null."""
    line = to_sglang(record)
    return None if line is None else json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _without_ours(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        ours = _OURS.get(key, frozenset())
        return {name: _without_ours(value, name) for name, value in node.items() if name not in ours}
    if isinstance(node, list):
        return [_without_ours(one, key) for one in node]
    return node

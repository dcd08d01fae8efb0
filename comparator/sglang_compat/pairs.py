"""Which files are compared with which: SGLang's comparator groups by every key of the target's file names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from comparator.match.pairs import Bundle, BundlePair
from comparator.match.runs import RunView
from comparator.options import Options
from comparator.sglang_compat.adapt import skipped_names
from dumper.readers.sglang.dump import SGLangDump, SGLangRecord

_ALWAYS_SKIPPED = frozenset({"dump_index", "filename"})
_DUPLICATE_INDEX = "duplicate_index"
"""The n-th file, from 0, that differs from others in its ``dump_index`` alone."""

Key = tuple[str | None, ...]


@dataclass(frozen=True)
class _Columns:
    """The keys of file names that tell bundles apart."""

    names: tuple[str, ...]
    shared: tuple[str, ...]
    """Those that the baseline's file names have too; the others are not compared."""

    def key(self, record: SGLangRecord, names: Iterable[str]) -> Key:
        return tuple(_part(record, name) for name in names)


def match_sglang_bundles(baseline: RunView, target: RunView, options: Options) -> list[BundlePair]:
    """Pairs in the order in which their keys first appear in the target, by rank and then by time.

    The range of steps and ``--filter`` select files of the target; the baseline keeps all of its own. What only the
    baseline has is not listed.
    """
    assert isinstance(baseline, SGLangDump)
    assert isinstance(target, SGLangDump)
    ignored = skipped_names(options)
    pattern = re.compile(options.filter) if options.filter else None
    wanted = [
        record
        for record in target.records
        if options.start_step <= record.step <= options.end_step
        and (pattern is None or pattern.search(record.filename) is not None)
        and record.dumped_name not in ignored
    ]
    known = [record for record in baseline.records if record.dumped_name not in ignored]
    columns = _columns(baseline.records, target.records, options.grouping_skip_keys)
    groups = _grouped(wanted, columns, columns.names)
    by_shared = _grouped(known, columns, columns.shared)
    histories = [_histories(records, columns) for records in (known, wanted)]
    pairs: list[BundlePair] = []
    for key, members in groups.items():
        values = dict(zip(columns.names, key, strict=True))
        others = by_shared.get(tuple(values[name] for name in columns.shared), []) if columns.shared else []
        steps = {record.step for record in members}
        pairs.append(
            BundlePair(
                members[0].dumped_name,
                tuple(
                    (name, value)
                    for name, value in values.items()
                    if value is not None and name not in ("name", "step") and not _is_plain(name, value)
                ),
                steps.pop() if len(steps) == 1 else None,
                _bundle(others, histories[0], columns),
                _bundle(members, histories[1], columns),
            )
        )
    return pairs


def _is_plain(name: str, value: str) -> bool:
    """Whether a part of the key says nothing that a reader of a report must know."""
    return (name, value) in ((_DUPLICATE_INDEX, "0"), ("recompute_status", "disabled"))


def _columns(baseline: Sequence[SGLangRecord], target: Sequence[SGLangRecord], skip: frozenset[str]) -> _Columns:
    left, right = (
        {name for record in records for name in record.parts} | {_DUPLICATE_INDEX} for records in (baseline, target)
    )
    names = sorted(right - skip - _ALWAYS_SKIPPED)
    return _Columns(tuple(names), tuple(name for name in names if name in left))


def _part(record: SGLangRecord, name: str) -> str | None:
    if name == _DUPLICATE_INDEX:
        return str(record.occurrence)
    if name in ("step", "rank"):
        return str(getattr(record, name))
    return record.parts.get(name)


def _grouped(
    records: Iterable[SGLangRecord], columns: _Columns, names: tuple[str, ...]
) -> dict[Key, list[SGLangRecord]]:
    groups: dict[Key, list[SGLangRecord]] = {}
    for record in records:
        groups.setdefault(columns.key(record, names), []).append(record)
    return groups


def _histories(records: Sequence[SGLangRecord], columns: _Columns) -> Mapping[Key, list[SGLangRecord]]:
    return _grouped(records, columns, _without_step(columns))


def _without_step(columns: _Columns) -> tuple[str, ...]:
    return tuple(name for name in columns.names if name != "step")


def _bundle(
    records: Sequence[SGLangRecord], histories: Mapping[Key, list[SGLangRecord]], columns: _Columns
) -> Bundle | None:
    if not records:
        return None
    names = _without_step(columns)
    key = columns.key(records[0], names)
    history = tuple(histories.get(key, records))
    return Bundle(tuple(records), records[0].order, history, tuple(zip(names, key, strict=True)))

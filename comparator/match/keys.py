"""What tells the bundles of one side apart, by either grouping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct

from comparator.errors import ComparatorError
from comparator.match.bundles import Entry, Key, KeyPart, RunIndex
from comparator.match.order import execution_order
from comparator.options import Options
from comparator.patterns import compiled
from comparator.rules import Rules, joins_steps
from dumper.readers.sglang.names import AUXILIARY_NAMES
from dumper.rules.expressions import Expression, ExpressionError

if TYPE_CHECKING:
    from dumper.readers.sglang.dump import SGLangRecord

_NEVER_KEYS = frozenset({"dump_index", "filename"})
_DUPLICATE_INDEX = "duplicate_index"
"""The n-th file, from 0, that differs from others in its ``dump_index`` alone."""


class Keyed(Struct, frozen=True):
    """An entry, what names its bundle, and whether the filter selects it."""

    entry: Entry
    key: Key
    """As the target names it."""
    shared: Key
    """What of it both sides can have."""
    order: int
    selected: bool


def keyed_entries(baseline: RunIndex, target: RunIndex, options: Options, rules: Rules) -> tuple[
    list[Keyed], list[Keyed]
]:  # fmt: skip
    """The entries of both sides with their keys, in the order in which their bundles are listed."""
    if rules.grouping == "tags":
        wanted = None if options.filter is None else _parse_filter(options.filter, baseline, target)
        return _by_tags(baseline, options, rules, wanted), _by_tags(target, options, rules, wanted)
    ours = {key for entry in baseline.entries for key in _parts(entry)} | {_DUPLICATE_INDEX}
    names = sorted(
        ({key for entry in target.entries for key in _parts(entry)} | {_DUPLICATE_INDEX})
        - options.grouping_skip_keys
        - _NEVER_KEYS
    )
    columns = tuple(names), tuple(name for name in names if name in ours)
    left = [Keyed(entry, _key_of_file(entry, columns[1]), _key_of_file(entry, columns[1]), number, True)
            for number, entry in _compared_files(baseline, options)]  # fmt: skip
    return left, list(_chosen_files(target, columns, options))


def _by_tags(index: RunIndex, options: Options, rules: Rules, wanted: Expression | None) -> list[Keyed]:
    joined = joins_steps(options, rules) or "step" in options.grouping_skip_keys
    found: list[Keyed] = []
    for number, entry in enumerate(execution_order(index.entries, place_of)):
        step = entry.step
        if step is not None and not options.start_step <= step <= options.end_step:
            continue
        selected = wanted is None or wanted.holds(_filtered_values(entry))
        key = _key_of_tags(entry, options.grouping_skip_keys, joined)
        found.append(Keyed(entry, key, key, number, selected))
    return found


def _parse_filter(text: str, baseline: RunIndex, target: RunIndex) -> Expression:
    """A filter in the language of ``dumper ls --filter``; raises ComparatorError also for names that no record has."""
    example = "write it as for 'dumper ls --filter': 'name == \"attn_output\" and layer_id in [0, 1]'"
    try:
        wanted = Expression(text)
    except ExpressionError as error:
        raise ComparatorError(f"--filter: {error}; {example}") from None
    known = {"name", "step", "rank"}.union(*(entry.tags for side in (baseline, target) for entry in side.entries))
    unknown = sorted(wanted.names - known)
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], known, n=3) or sorted(known)
        raise ComparatorError(
            f"--filter: no record of the runs has {unknown[0]!r}; there are {', '.join(near)}; {example}"
        )
    return wanted


def _filtered_values(entry: Entry) -> dict[str, Any]:
    """What a filter looks at."""
    return {**entry.tags, "name": entry.name, "step": entry.step, "rank": entry.rank}


def place_of(entry: Entry) -> Key:
    """The same for the entries of several ranks that were recorded at one place in one step."""
    return _key_of_tags(entry, frozenset({"rank"}), True)


def _key_of_tags(entry: Entry, skip: frozenset[str], joined: bool) -> Key:
    record = entry.record
    parts: list[KeyPart] = [("name", entry.name)]
    if not joined:
        parts.append(("step", entry.step))
    if "rank" not in skip:
        parts.append(("rank", entry.rank))
    if record.stream != "value" and "stream" not in skip:
        parts.append(("stream", record.stream))
    if record.recompute and "recompute_status" not in skip:
        parts.append(("recompute", "yes"))
    if record.occurrence and not skip & {"occurrence", "duplicate_index"}:
        parts.append(("occurrence", record.occurrence))
    parts.extend((key, str(entry.tags[key])) for key in sorted(entry.tags) if key not in skip)
    return tuple(parts)


def sglang_record(entry: Entry) -> SGLangRecord:
    """The file behind an entry of one of SGLang's dumps."""
    # Not checked: the class is in the reader, which is loaded for such dumps alone.
    return cast("SGLangRecord", entry.record)


def _parts(entry: Entry) -> Sequence[str]:
    return tuple(sglang_record(entry).parts)


def _compared_files(index: RunIndex, options: Options) -> Iterator[tuple[int, Entry]]:
    """Files but for those that ``smart`` aligns by."""
    ignored = AUXILIARY_NAMES if options.token_aligner == "smart" else ()
    for number, entry in enumerate(index.entries):
        if sglang_record(entry).dumped_name not in ignored:
            yield number, entry


def _chosen_files(
    index: RunIndex, columns: tuple[tuple[str, ...], tuple[str, ...]], options: Options
) -> Iterator[Keyed]:
    pattern = compiled(options.filter, "--filter") if options.filter else None
    for number, entry in _compared_files(index, options):
        record = sglang_record(entry)
        if not options.start_step <= record.step <= options.end_step:
            continue
        if pattern is None or pattern.search(record.filename) is not None:
            yield Keyed(entry, _key_of_file(entry, columns[0]), _key_of_file(entry, columns[1]), number, True)


def _key_of_file(entry: Entry, names: tuple[str, ...]) -> Key:
    return tuple((name, _part(sglang_record(entry), name)) for name in names)


def _part(record: SGLangRecord, name: str) -> str | None:
    if name == _DUPLICATE_INDEX:
        return str(record.occurrence)
    if name == "step":
        return str(record.step)
    if name == "rank":
        return str(record.rank)
    return record.parts.get(name)


def shown_tags(key: Key) -> Key:
    """The parts of a key that a reader must know beside the name and the step."""
    plain = ((_DUPLICATE_INDEX, "0"), ("recompute_status", "disabled"))
    return tuple(part for part in key if part[1] is not None and part[0] not in ("name", "step") and part not in plain)

"""What tells the bundles of one side apart: a number per entry, and a key per number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.errors import ComparatorError
from comparator.match.bundles import Key, KeyPart, RunIndex
from comparator.match.entries import Entries, Entry
from comparator.match.numbering import Integers, combined, numbered
from comparator.match.order import execution_order
from comparator.options import Options
from comparator.patterns import compiled
from comparator.rules import Rules, joins_steps
from dumper.reading.columns import OUTSIDE_STEPS
from dumper.reading.named_files import AUXILIARY_NAMES, NamedFile
from dumper.rules.expressions import Expression, ExpressionError

_NEVER_KEYS = frozenset({"dump_index", "filename"})
_DUPLICATE_INDEX = "duplicate_index"
"""The n-th file, from 0, that differs from others in its ``dump_index`` alone."""


class BundleKey(Struct, frozen=True):
    """What names a bundle."""

    key: Key
    """As the target names it."""
    family: Key
    """Without the step."""
    shared: Key
    """What of it both sides can have."""


class Keyed(Struct, frozen=True, eq=False):
    """The entries of one side that take part, in the order in which their bundles are listed."""

    entries: Entries
    row: Integers
    """The number of each."""
    key: Integers
    """Of each, the number of its key."""
    keys: Sequence[BundleKey]
    family: Integers
    """Of each of ``keys``, the number of its family."""
    selected: npt.NDArray[np.bool_]
    """Of each, whether the filter selects it."""


def keyed_entries(baseline: RunIndex, target: RunIndex, options: Options, rules: Rules) -> tuple[Keyed, Keyed]:
    """The entries of both sides with their keys."""
    if rules.grouping == "tags":
        wanted = None if options.filter is None else _parse_filter(options.filter, baseline, target)
        return _by_tags(baseline, options, rules, wanted), _by_tags(target, options, rules, wanted)
    left, right = _compared_files(baseline, options), _chosen_files(target, options)
    ours = _names_of_parts(baseline)
    names = sorted(_names_of_parts(target) - options.grouping_skip_keys - _NEVER_KEYS)
    shared = [name for name in names if name in ours]
    return _by_files(baseline, left, shared, shared), _by_files(target, right, names, shared)


def _by_tags(index: RunIndex, options: Options, rules: Rules, wanted: Expression | None) -> Keyed:
    entries, skip = index.entries, options.grouping_skip_keys
    row = execution_order(entries.step, entries.rank, _places(entries))
    step = entries.step[row]
    inside = (step == OUTSIDE_STEPS) | ((step >= options.start_step) & (step <= options.end_step))
    if not inside.all():
        row, step = row[inside], step[inside]
    family, families = _families(entries, row, skip)
    key: Integers
    of_key: Integers
    if joins_steps(options, rules) or "step" in skip:
        keys = [BundleKey(one, one, one) for one in families]
        key, of_key = family, np.arange(len(families))
    else:
        key, of_key, at = combined(family, step)
        keys = [_with_step(families[one], step) for one, step in zip(of_key.tolist(), at.tolist(), strict=True)]
    return Keyed(entries, row, key, keys, of_key, _selected(entries, row, wanted))


def _places(entries: Entries) -> Integers:
    """Of each entry a number that is the same for those of several ranks that were recorded at one place in a step."""
    place, _ = _parts_of_kinds(entries, frozenset())
    return combined(place[entries.kind], entries.occurrence)[0]


def _families(entries: Entries, row: Integers, skip: frozenset[str]) -> tuple[Integers, list[Key]]:
    """Of each entry the number of its key without the step, and these keys."""
    of_kind, parts = _parts_of_kinds(entries, skip)
    number: Integers = of_kind[entries.kind[row]]
    ranks: Integers | None = None
    if "rank" not in skip:
        number, which, ranks = combined(number, entries.rank[row])
        parts = [parts[one] for one in which.tolist()]
    occurrence = entries.occurrence[row]
    if skip & {"occurrence", _DUPLICATE_INDEX}:
        occurrence = np.zeros_like(occurrence)
    family, which, times = combined(number, occurrence)
    keys = []
    for one, count in zip(which.tolist(), times.tolist(), strict=True):
        name, middle, tags = parts[one]
        rank: Key = () if ranks is None else (("rank", int(ranks[one])),)
        keys.append((name, *rank, *middle, *((("occurrence", count),) if count else ()), *tags))
    return family, keys


_Parts = tuple[KeyPart, Key, Key]
"""Of a key, those that come before the rank, before the occurrence, and behind it."""


def _parts_of_kinds(entries: Entries, skip: frozenset[str]) -> tuple[Integers, list[_Parts]]:
    """Of each kind the number of its parts, and the parts of each number."""
    # Tags that many kinds share are one object.
    told = [(one.name, id(one.tags), one.record.stream, one.record.recompute) for one in entries.kinds]
    of_kind, alike = numbered(told)
    first = dict(zip(reversed(told), reversed(entries.kinds), strict=True))
    number, parts = numbered(_parts_of_kind(first[one], skip) for one in alike)
    return number[of_kind], parts


def _parts_of_kind(kind: Entry, skip: frozenset[str]) -> _Parts:
    record = kind.record
    parts: list[KeyPart] = []
    if record.stream != "value" and "stream" not in skip:
        parts.append(("stream", record.stream))
    if record.recompute and "recompute_status" not in skip:
        parts.append(("recompute", "yes"))
    tags = tuple((key, str(kind.tags[key])) for key in sorted(kind.tags) if key not in skip)
    return ("name", kind.name), tuple(parts), tags


def _with_step(family: Key, step: int) -> BundleKey:
    key = (family[0], ("step", None if step == OUTSIDE_STEPS else step), *family[1:])
    return BundleKey(key, family, key)


def _selected(entries: Entries, row: Integers, wanted: Expression | None) -> npt.NDArray[np.bool_]:
    if wanted is None:
        return np.ones(len(row), np.bool_)
    # What a filter does not look at cannot change what it says.
    looked_at = sorted(wanted.names - {"step", "rank"})
    views = [{**kind.tags, "name": kind.name} for kind in entries.kinds]
    of_kind, _ = numbered(tuple((name in view, repr(view.get(name))) for name in looked_at) for view in views)
    nothing = np.zeros(len(row), np.int64)
    number, which, ranks = combined(
        of_kind[entries.kind[row]], entries.rank[row] if "rank" in wanted.names else nothing
    )
    number, which_rank, steps = combined(number, entries.step[row] if "step" in wanted.names else nothing)
    view_of = dict(zip(reversed(of_kind.tolist()), reversed(views), strict=True))
    holds = [
        wanted.holds(
            {**view_of[int(which[at])], "rank": int(ranks[at]), "step": None if step == OUTSIDE_STEPS else step}
        )
        for at, step in zip(which_rank.tolist(), steps.tolist(), strict=True)
    ]
    return np.array(holds, np.bool_)[number]


def _parse_filter(text: str, baseline: RunIndex, target: RunIndex) -> Expression:
    """A filter in the language of ``dumper ls --filter``; raises ComparatorError also for names that no record has."""
    example = "write it as for 'dumper ls --filter': 'name == \"attn_output\" and layer_id in [0, 1]'"
    try:
        wanted = Expression(text)
    except ExpressionError as error:
        raise ComparatorError(f"--filter: {error}; {example}") from None
    known = {"name", "step", "rank"}.union(*(kind.tags for side in (baseline, target) for kind in side.entries.kinds))
    unknown = sorted(wanted.names - known)
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], known, n=3) or sorted(known)
        raise ComparatorError(
            f"--filter: no record of the runs has {unknown[0]!r}; there are {', '.join(near)}; {example}"
        )
    return wanted


def named_file(entry: Entry) -> NamedFile:
    """The file of an entry, whose name tells the record: of every one where pairs are grouped by file names.

    Raises ComparatorError where a recording breaks the promise that all of its records have such files.
    """
    found = entry.record.named_file
    if found is None:
        raise ComparatorError(f"{entry.record.source} is not named as SGLang's dumper names files")
    return found


def _names_of_parts(index: RunIndex) -> set[str]:
    return {_DUPLICATE_INDEX}.union(*{tuple(named_file(entry).parts) for entry in index.entries})


_Chosen = Sequence[tuple[int, Entry, NamedFile]]
"""Of each entry that takes part its number, and its file."""


def _compared_files(index: RunIndex, options: Options) -> _Chosen:
    """Files but for those that ``smart`` aligns by."""
    ignored = AUXILIARY_NAMES if options.token_aligner == "smart" else ()
    found = [(number, entry, named_file(entry)) for number, entry in enumerate(index.entries)]
    return [one for one in found if one[2].dumped_name not in ignored] if ignored else found


def _chosen_files(index: RunIndex, options: Options) -> _Chosen:
    pattern = compiled(options.filter, "--filter") if options.filter else None
    first, last = options.start_step, options.end_step
    return [
        one
        for one in _compared_files(index, options)
        if first <= one[2].step <= last and (pattern is None or pattern.search(one[2].filename) is not None)
    ]


def _by_files(index: RunIndex, chosen: _Chosen, names: Sequence[str], shared: Sequence[str]) -> Keyed:
    of_name = [_column(chosen, name) for name in names]
    key, found = (
        numbered(zip(*of_name, strict=True)) if names else (np.zeros(len(chosen), np.int64), [()][: len(chosen)])
    )
    in_family = [at for at, name in enumerate(names) if name != "step"]
    in_both = [names.index(name) for name in shared]
    families: dict[tuple[str | None, ...], tuple[int, Key]] = {}
    family_of, keys = [], []
    for values in found:
        pairs = tuple(zip(names, values, strict=True))
        told = tuple([values[at] for at in in_family])
        if told not in families:
            families[told] = len(families), tuple([pairs[at] for at in in_family])
        number, family = families[told]
        family_of.append(number)
        common = pairs if len(shared) == len(names) else tuple([pairs[at] for at in in_both])
        keys.append(BundleKey(pairs, family, common))
    row = np.array([number for number, *_ in chosen], np.int64)
    return Keyed(index.entries, row, key, keys, np.array(family_of, np.int64), np.ones(len(row), np.bool_))


def _column(chosen: _Chosen, name: str) -> list[str | None]:
    """What the name of each file has for a part, as text."""
    if name == _DUPLICATE_INDEX:
        return [str(entry.record.occurrence) for _, entry, _ in chosen]
    if name == "step":
        return [str(entry.step) for _, entry, _ in chosen]
    if name == "rank":
        return [str(entry.rank) for _, entry, _ in chosen]
    return [file.parts.get(name) for *_, file in chosen]


def shown_tags(key: Key) -> Key:
    """The parts of a key that a reader must know beside the name and the step."""
    plain = ((_DUPLICATE_INDEX, "0"), ("recompute_status", "disabled"))
    return tuple(part for part in key if part[1] is not None and part[0] not in ("name", "step") and part not in plain)

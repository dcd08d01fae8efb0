"""What tells the bundles of one side apart: a number per entry, and a key per number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

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
from tensortap.distinct import distinct

_NEVER_KEYS = frozenset({"dump_index", "filename"})
_DUPLICATE_INDEX = "duplicate_index"
"""The n-th file, from 0, that differs from others in its ``dump_index`` alone."""


class BundleKey(Struct, frozen=True):
    """What names a bundle."""

    key: tuple[Any, ...]
    """As the target names it: a ``Key`` by tags, by file names the values alone, whose names are those of all."""
    family: Key
    """Without the step."""
    shared: tuple[Any, ...]
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
    left, right = _Files.of(baseline), _Files.of(target)
    ours = left.names_of_parts
    names = sorted(right.names_of_parts - options.grouping_skip_keys - _NEVER_KEYS)
    shared = [name for name in names if name in ours]
    return (
        _by_files(left.compared(options), shared, shared),
        _by_files(right.compared(options).selected(options), names, shared),
    )


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


class _Files(Struct, frozen=True, eq=False):
    """Entries of a run that are files, whose names tell them."""

    index: RunIndex
    number: Integers
    """Of each, which of the entries of the run it is."""
    files: Sequence[NamedFile]

    @classmethod
    def of(cls, index: RunIndex) -> _Files:
        """All of a run."""
        return cls(index, np.arange(len(index.entries)), [named_file(entry) for entry in index.entries])

    @property
    def names_of_parts(self) -> set[str]:
        return {_DUPLICATE_INDEX}.union(*{tuple(file.parts) for file in self.files})

    def compared(self, options: Options) -> _Files:
        """Those but for the ones that ``smart`` aligns by."""
        if options.token_aligner != "smart":
            return self
        return self._where([file.dumped_name not in AUXILIARY_NAMES for file in self.files])

    def selected(self, options: Options) -> _Files:
        """Those of the steps, and by the filter, that were asked for."""
        step = self.index.entries.step[self.number]
        found = self._where(((step >= options.start_step) & (step <= options.end_step)).tolist())
        if not options.filter:
            return found
        pattern = compiled(options.filter, "--filter")
        return found._where([pattern.search(file.filename) is not None for file in found.files])

    def _where(self, chosen: Sequence[bool]) -> _Files:
        if all(chosen):
            return self
        return _Files(self.index, self.number[np.array(chosen, np.bool_)], list(compress(self.files, chosen)))

    def column(self, name: str) -> list[str | None]:
        """What the name of each file has for a part, as text."""
        entries = self.index.entries
        if name == _DUPLICATE_INDEX:
            return _texts(entries.occurrence[self.number])
        if name == "step":
            return _texts(entries.step[self.number])
        if name == "rank":
            return _texts(entries.rank[self.number])
        return [file.parts.get(name) for file in self.files]


def _texts(numbers: Integers) -> list[str | None]:
    texts = {number: str(number) for number in distinct(numbers).tolist()}
    return list(map(texts.__getitem__, numbers.tolist()))


def _by_files(files: _Files, names: Sequence[str], shared: Sequence[str]) -> Keyed:
    count = len(files.number)
    columns = [files.column(name) for name in names]
    key, found = numbered(zip(*columns, strict=True)) if names else (np.zeros(count, np.int64), [()][:count])
    in_family = [at for at, name in enumerate(names) if name != "step"]
    in_both = [names.index(name) for name in shared]
    family, families = numbered(tuple([values[at] for at in in_family]) for values in found)
    shown = [tuple([(names[at], value) for at, value in zip(in_family, told, strict=True)]) for told in families]
    common = found if len(shared) == len(names) else [tuple([values[at] for at in in_both]) for values in found]
    keys = [BundleKey(values, shown[at], both) for values, at, both in zip(found, family.tolist(), common, strict=True)]
    return Keyed(files.index.entries, files.number, key, keys, family, np.ones(count, np.bool_))


def shown_tags(key: Key) -> Key:
    """The parts of a key that a reader must know beside the name and the step."""
    plain = ((_DUPLICATE_INDEX, "0"), ("recompute_status", "disabled"))
    return tuple(part for part in key if part[1] is not None and part[0] not in ("name", "step") and part not in plain)

"""Group the entries of both runs into bundles and pair the bundles, from the index alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.match.bundles import Bundle, BundlePair, Key, RunIndex
from comparator.match.entries import Entries, Entry, Members
from comparator.match.keys import BundleKey, Keyed, keyed_entries, named_file, shown_tags
from comparator.match.numbering import Integers, ranges, stable_order
from comparator.match.occurrences import join_occurrences
from comparator.options import Options
from comparator.rules import Rules
from dumper.reading.columns import OUTSIDE_STEPS
from dumper.reading.protocol import Run


class _Grouped(Struct, frozen=True):
    """A bundle, what names it, and what it is called in a pair."""

    key: BundleKey
    bundle: Bundle
    name: str
    tags: Key
    step: int | None
    """The one step of all its entries; None where they are of several, or of none."""


def match_bundles(baseline: RunIndex, target: RunIndex, options: Options, rules: Rules) -> list[BundlePair]:
    """Pair the bundles of both runs. No payload is read, and no record looked at by itself.

    By tags, pairs come in the target's order of execution, or in the baseline's where pipeline stages of the target did
    their parts at the same time and one of the baseline did all; those that only the baseline has follow. By file
    names, they come in the order in which their keys first appear in the target.
    """
    by_tags = rules.grouping == "tags"
    left, right = keyed_entries(baseline, target, options, rules)
    if by_tags:
        left, right = join_occurrences(left, right, options)
    wanted = {one.shared for one in right.keys}
    asked_for = np.array([one.shared in wanted for one in left.keys], np.bool_)
    lefts = {one.key.key: one for one in _bundles(left, left.selected | asked_for[left.key], rules)}
    pairs = [
        _pair(one, lefts.get(one.key.shared) if one.key.shared else None, one)
        for one in _bundles(right, right.selected, rules)
    ]
    if by_tags and _has_stages(target.run) and not _has_stages(baseline.run):
        pairs = _in_order_of_baseline(pairs, [one.bundle for one in lefts.values()])
    if by_tags:
        pairs.extend(_pair(one, one, None) for one in lefts.values() if one.key.key not in wanted)
    return pairs


def _has_stages(run: Run) -> bool:
    """Whether ranks are stages of a pipeline. Nothing tells what one did before another."""
    return any(header.parallel.get("pp", (0, 1))[1] > 1 for header in run.headers.values())


def _in_order_of_baseline(pairs: Sequence[BundlePair], baseline: Sequence[Bundle]) -> list[BundlePair]:
    """The pairs as the baseline's bundles come, each that it does not have behind the one that it was behind."""
    places = {id(bundle): at for at, bundle in enumerate(baseline)}
    at, keys = -1, []
    for pair in pairs:
        at = at if pair.baseline is None else places[id(pair.baseline)]
        keys.append(at)
    return [pairs[number] for number in sorted(range(len(pairs)), key=keys.__getitem__)]


def _pair(some: _Grouped, baseline: _Grouped | None, target: _Grouped | None) -> BundlePair:
    left, right = None if baseline is None else baseline.bundle, None if target is None else target.bundle
    return BundlePair(some.name, some.tags, some.step, left, right)


def _bundles(side: Keyed, chosen: npt.NDArray[np.bool_], rules: Rules) -> Iterator[_Grouped]:
    """The bundles of the chosen entries, in the order in which their first ones come."""
    row, key = (side.row, side.key) if chosen.all() else (side.row[chosen], side.key[chosen])
    if not len(row):
        return
    by_key = stable_order(key)
    starts = np.append(0, np.flatnonzero(np.diff(key[by_key])) + 1)
    counts = np.diff(np.append(starts, len(row)))
    listed = np.argsort(by_key[starts], kind="stable")
    starts, counts, numbers = starts[listed], counts[listed], key[by_key[starts[listed]]]
    # The rows of a family lie side by side, and in them those of each of its bundles.
    laid = np.argsort(side.family[numbers], kind="stable")
    rows = row[by_key[ranges(starts[laid], counts[laid])]]
    ends = np.cumsum(counts[laid])
    families = dict(_families(side, rows, numbers[laid], ends))
    steps = _single_steps(side.entries, rows, ends)
    firsts = side.entries.kind[rows[ends - counts[laid]]].tolist()
    place = np.empty_like(laid)
    place[laid] = np.arange(len(laid))
    of_family = side.family[numbers].tolist()
    first, last, kinds = (ends - counts[laid]).tolist(), ends.tolist(), side.entries.kinds
    for number, family, at in zip(numbers.tolist(), of_family, place.tolist(), strict=True):
        one, (tags, history) = side.keys[number], families[family]
        like = kinds[firsts[at]]
        members = Members(side.entries, rows[first[at] : last[at]], first_kind=like)
        yield _Grouped(one, Bundle(members, history, one.family), _name(like, rules), tags, steps[at])


def _name(first: Entry, rules: Rules) -> str:
    return first.name if rules.grouping == "tags" else named_file(first).dumped_name


def _families(
    side: Keyed, rows: Integers, numbers: Integers, ends: Integers
) -> Iterator[tuple[int, tuple[Key, Members]]]:
    """Of each family the tags that are shown of it, and its entries. ``numbers`` are the keys in the order of ``rows``,
    each up to one of ``ends``."""
    family = side.family[numbers]
    start = 0
    for last in np.append(np.flatnonzero(np.diff(family)), len(family) - 1).tolist():
        history = Members(side.entries, rows[start : ends[last]], stays=False)
        yield int(family[last]), (shown_tags(side.keys[int(numbers[last])].family), history)
        start = int(ends[last])


def _single_steps(entries: Entries, rows: Integers, ends: Integers) -> list[int | None]:
    """Of each stretch of rows its step, where they have one."""
    step = entries.step[rows]
    starts = np.append(0, ends[:-1])
    least, most = np.minimum.reduceat(step, starts), np.maximum.reduceat(step, starts)
    single = np.where(least == most, least, OUTSIDE_STEPS).tolist()
    return [None if one == OUTSIDE_STEPS else one for one in single]

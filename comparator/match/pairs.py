"""Group the entries of both runs into bundles and pair the bundles, from the index alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.match.bundles import Bundle, BundlePair, Entry, Key, RunIndex
from comparator.match.entries import Entries, Integers, Members
from comparator.match.keys import BundleKey, Keyed, keyed_entries, numbered, sglang_record, shown_tags
from comparator.match.occurrences import join_occurrences
from comparator.options import Options
from comparator.rules import Rules
from dumper.reading.columns import OUTSIDE_STEPS


class _Grouped(Struct, frozen=True):
    """A bundle, what names it, and what it is called in a pair."""

    key: BundleKey
    bundle: Bundle
    step: int | None
    """The one step of all its entries; None where they are of several, or of none."""
    first: Entry
    """What its first entry is like."""


def match_bundles(baseline: RunIndex, target: RunIndex, options: Options, rules: Rules) -> list[BundlePair]:
    """Pair the bundles of both runs. No payload is read, and no record looked at by itself.

    By tags, pairs come in the target's order of execution, and those that only the baseline has follow; by file names,
    in the order in which their keys first appear in the target.
    """
    left, right = keyed_entries(baseline, target, options, rules)
    if rules.grouping == "tags":
        left, right = join_occurrences(left, right, options)
    wanted = {one.shared for one in right.keys}
    asked_for = np.array([one.shared in wanted for one in left.keys], np.bool_)
    lefts = {found.key.key: found for found in _bundles(left, left.selected | asked_for[left.key])}
    rights = list(_bundles(right, right.selected))
    shown: dict[Key, Key] = {}
    pairs = [
        _pair(found, lefts.get(found.key.shared) if found.key.shared else None, found, rules, shown) for found in rights
    ]
    if rules.grouping == "tags":
        pairs.extend(_pair(found, found, None, rules, shown) for found in lefts.values() if found.key.key not in wanted)
    return pairs


def _bundles(side: Keyed, chosen: npt.NDArray[np.bool_]) -> Iterator[_Grouped]:
    """The bundles of the chosen entries, in the order in which their first ones come."""
    row, key = side.row[chosen], side.key[chosen]
    if not len(row):
        return
    by_key = np.argsort(key, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(key[by_key])) + 1)
    listed = np.argsort(by_key[starts], kind="stable")
    counts = np.diff(np.append(starts, len(row)))
    keys = [side.keys[number] for number in key[by_key[starts]][listed].tolist()]
    family, _ = numbered([one.family for one in keys])
    # The rows of a family lie side by side, and in them those of each of its bundles.
    laid = np.argsort(family, kind="stable")
    order = by_key[_ranges(starts[listed][laid], counts[listed][laid])]
    rows, ends = row[order], np.cumsum(counts[listed][laid])
    family_ends = ends[np.append(np.flatnonzero(np.diff(family[laid])), len(laid) - 1)]
    histories = [
        Members(side.entries, rows[start:end], stays=False)
        for start, end in zip([0, *family_ends.tolist()], family_ends.tolist(), strict=False)
    ]
    steps = _single_steps(side.entries, rows, ends)
    place = np.empty_like(laid)
    place[laid] = np.arange(len(laid))
    for one, number, at in zip(keys, family.tolist(), place.tolist(), strict=True):
        members = Members(side.entries, rows[ends[at - 1] if at else 0 : ends[at]])
        yield _Grouped(one, Bundle(members, histories[number], one.family), steps[at], members.first_kind)


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """The numbers from each start on, as many as its count says, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def _single_steps(entries: Entries, rows: Integers, ends: Integers) -> list[int | None]:
    """Of each stretch of rows its step, where they have one."""
    step = entries.step[rows]
    starts = np.append(0, ends[:-1])
    least, most = np.minimum.reduceat(step, starts), np.maximum.reduceat(step, starts)
    single = np.where(least == most, least, OUTSIDE_STEPS).tolist()
    return [None if one == OUTSIDE_STEPS else one for one in single]


def _pair(
    some: _Grouped, baseline: _Grouped | None, target: _Grouped | None, rules: Rules, shown: dict[Key, Key]
) -> BundlePair:
    family = some.key.family
    if family not in shown:
        shown[family] = shown_tags(family)
    first = some.first
    name = first.name if rules.grouping == "tags" else sglang_record(first).dumped_name
    sides = (None if side is None else side.bundle for side in (baseline, target))
    return BundlePair(name, shown[family], some.step, *sides)

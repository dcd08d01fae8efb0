"""Group the entries of both runs into bundles and pair the bundles, from the index alone."""

from __future__ import annotations

from collections.abc import Iterable

from comparator.match.bundles import Bundle, BundlePair, Entry, Key, RunIndex, sorted_steps
from comparator.match.keys import Keyed, keyed_entries, sglang_record, shown_tags
from comparator.match.occurrences import join_occurrences
from comparator.options import Options
from comparator.rules import Rules


def match_bundles(baseline: RunIndex, target: RunIndex, options: Options, rules: Rules) -> list[BundlePair]:
    """Pair the bundles of both runs. No payload is read.

    By tags, pairs come in the target's order of execution, and those that only the baseline has follow; by file names,
    in the order in which their keys first appear in the target.
    """
    left, right = keyed_entries(baseline, target, options, rules)
    if rules.grouping == "tags":
        left, right = join_occurrences(left, right, options)
    wanted = {found.shared for found in right}
    left_bundles = _bundles(found for found in left if found.selected or found.shared in wanted)
    right_bundles = _bundles(found for found in right if found.selected)
    shared = {found.key: found.shared for found in right}
    pairs = [
        _pair(key, left_bundles.get(shared[key]) if shared[key] else None, bundle, rules)
        for key, bundle in right_bundles.items()
    ]
    if rules.grouping == "tags":
        pairs.extend(_pair(key, bundle, None, rules) for key, bundle in left_bundles.items() if key not in wanted)
    return pairs


def _bundles(found: Iterable[Keyed]) -> dict[Key, Bundle]:
    groups: dict[Key, list[Keyed]] = {}
    for one in found:
        groups.setdefault(one.key, []).append(one)
    families: dict[Key, list[Entry]] = {}
    for key, members in groups.items():
        families.setdefault(_without_step(key), []).extend(one.entry for one in members)
    histories = {family: tuple(entries) for family, entries in families.items()}
    return {
        key: Bundle(
            tuple(one.entry for one in members),
            members[0].order,
            histories[_without_step(key)],
            _without_step(key),
        )
        for key, members in groups.items()
    }


def _without_step(key: Key) -> Key:
    return tuple(part for part in key if part[0] != "step")


def _pair(key: Key, baseline: Bundle | None, target: Bundle | None, rules: Rules) -> BundlePair:
    some = target or baseline
    assert some is not None
    steps = sorted_steps(some.entries)
    first = some.entries[0]
    name = first.name if rules.grouping == "tags" else sglang_record(first).dumped_name
    return BundlePair(name, shown_tags(key), steps[0] if len(steps) == 1 else None, baseline, target)

"""Group the records of both runs into bundles and pair the bundles, from the index alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from comparator.match.runs import RecordView, RunView, file_name
from comparator.options import Options

KeyPart = tuple[str, str | int | None]


@dataclass(frozen=True)
class Bundle:
    """The records on one side that make one logical tensor (or value)."""

    records: tuple[RecordView, ...]
    order: int
    """Place of the first record among all records of the run, in the order of execution."""
    history: tuple[RecordView, ...] = ()
    """The records of all steps with the same name and tags, these among them."""
    family: tuple[KeyPart, ...] = ()
    """What names that history: the key without the step."""

    @property
    def steps(self) -> tuple[int | None, ...]:
        return tuple(sorted({record.step for record in self.records}, key=lambda step: (step is not None, step or 0)))


@dataclass(frozen=True)
class BundlePair:
    """What is compared with what; one side is None when only the other has it."""

    name: str
    tags: tuple[tuple[str, str | int | None], ...]
    """What else tells this pair from others of the name: tags, rank, occurrence, ..."""
    step: int | None
    """The step of the target's records; None when several steps are joined."""
    baseline: Bundle | None
    target: Bundle | None

    @property
    def label(self) -> str:
        """The pair for people: ``attn_output layer_id=3``."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.tags)])


@dataclass(frozen=True)
class _Entry:
    key: tuple[KeyPart, ...]
    record: RecordView
    order: int
    selected: bool


def match_bundles(baseline: RunView, target: RunView, options: Options) -> list[BundlePair]:
    """Pair the bundles of both runs by name, tags, stream, occurrence and step.

    Pairs come in the target's order of execution; those that only the baseline has follow. No payload is read.
    """
    left, right = _entries(baseline, options), _entries(target, options)
    right_keys = {entry.key for entry in right}
    left_bundles = _bundles(entry for entry in left if entry.selected or entry.key in right_keys)
    right_bundles = _bundles(entry for entry in right if entry.selected)
    pairs = [_pair(key, left_bundles.get(key), bundle) for key, bundle in right_bundles.items()]
    pairs.extend(_pair(key, bundle, None) for key, bundle in left_bundles.items() if key not in right_keys)
    return pairs


def _entries(run: RunView, options: Options) -> list[_Entry]:
    pattern = re.compile(options.filter) if options.filter else None
    joined = options.joins_steps or "step" in options.grouping_skip_keys
    entries: list[_Entry] = []
    for number, record in enumerate(execution_order(run.records)):
        step = record.step
        if step is not None and not options.start_step <= step <= options.end_step:
            continue
        selected = pattern is None or pattern.search(file_name(record, number)) is not None
        entries.append(_Entry(_key(record, options.grouping_skip_keys, joined), record, number, selected))
    return entries


def execution_order(records: Sequence[RecordView]) -> list[RecordView]:
    """Records by step; within a step in the order of the rank that recorded most, the others' put in between.

    A rank that has nothing to do in a step may leave taps out, so its places do not count. What only another rank
    recorded follows what came before it there; a rank with nothing in common (another pipeline stage) comes before
    or after as its number says.
    """
    steps: dict[int | None, dict[int, list[RecordView]]] = {}
    for record in records:
        steps.setdefault(record.step, {}).setdefault(record.rank, []).append(record)
    ordered: list[RecordView] = []
    for step in sorted(steps, key=lambda at: (at is not None, at or 0)):
        ordered.extend(_order_of_step(steps[step]))
    return ordered


def _order_of_step(ranks: dict[int, list[RecordView]]) -> list[RecordView]:
    if len(ranks) == 1:
        return next(iter(ranks.values()))
    reference = max(sorted(ranks), key=lambda rank: len(ranks[rank]))
    keys = {rank: [_key(record, frozenset({"rank"}), True) for record in found] for rank, found in ranks.items()}
    places = {key: (number, 0) for number, key in enumerate(keys[reference])}
    for rank in sorted(ranks):
        common = any(key in places for key in keys[rank])
        last = (-1, 0) if common or rank < reference else (len(keys[reference]), 0)
        for key in keys[rank]:
            last = places.setdefault(key, (last[0], last[1] + 1))
    keyed = [
        (places[key], rank, number, record)
        for rank, found in ranks.items()
        for number, (key, record) in enumerate(zip(keys[rank], found, strict=True))
    ]
    keyed.sort(key=lambda item: item[:3])
    return [record for *_, record in keyed]


def _key(record: RecordView, skip: frozenset[str], joined: bool) -> tuple[KeyPart, ...]:
    parts: list[KeyPart] = [("name", record.name)]
    if not joined:
        parts.append(("step", record.step))
    if "rank" not in skip:
        parts.append(("rank", record.rank))
    if record.stream != "value" and "stream" not in skip:
        parts.append(("stream", record.stream))
    if record.recompute and "recompute_status" not in skip:
        parts.append(("recompute", "yes"))
    if record.occurrence and not skip & {"occurrence", "duplicate_index"}:
        parts.append(("occurrence", record.occurrence))
    parts.extend((key, str(record.tags[key])) for key in sorted(record.tags) if key not in skip)
    return tuple(parts)


def _bundles(entries: Iterable[_Entry]) -> dict[tuple[KeyPart, ...], Bundle]:
    groups: dict[tuple[KeyPart, ...], list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.key, []).append(entry)
    families: dict[tuple[KeyPart, ...], list[RecordView]] = {}
    for key, members in groups.items():
        families.setdefault(_without_step(key), []).extend(entry.record for entry in members)
    histories = {family: tuple(records) for family, records in families.items()}
    return {
        key: Bundle(
            tuple(entry.record for entry in members),
            members[0].order,
            histories[_without_step(key)],
            _without_step(key),
        )
        for key, members in groups.items()
    }


def _without_step(key: tuple[KeyPart, ...]) -> tuple[KeyPart, ...]:
    return tuple(part for part in key if part[0] != "step")


def _pair(key: tuple[KeyPart, ...], baseline: Bundle | None, target: Bundle | None) -> BundlePair:
    some = target or baseline
    assert some is not None
    steps = some.steps
    tags = tuple((name, value) for name, value in key[1:] if name != "step")
    return BundlePair(str(key[0][1]), tags, steps[0] if len(steps) == 1 else None, baseline, target)


def split_steps(pair: BundlePair) -> list[BundlePair]:
    """One pair per step of a pair that joins steps; for what has no token dimension to join along."""
    sides = (pair.baseline, pair.target)
    steps = sorted({step for side in sides if side for step in side.steps}, key=lambda at: (at is not None, at or 0))
    if len(steps) < 2:
        return [pair]
    return [
        BundlePair(pair.name, pair.tags, step, _of_step(pair.baseline, step), _of_step(pair.target, step))
        for step in steps
    ]


def _of_step(bundle: Bundle | None, step: int | None) -> Bundle | None:
    if bundle is None:
        return None
    records = tuple(record for record in bundle.records if record.step == step)
    return replace(bundle, records=records) if records else None

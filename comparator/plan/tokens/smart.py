"""Joining two runs on token identity: ``smart``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.options import Side
from comparator.plan.tokens import one_sided
from comparator.plan.tokens.drafts import NO_PATH
from comparator.plan.tokens.episodes import NEVER
from comparator.plan.tokens.interface import TokenPlan
from comparator.plan.tokens.pairing import SequencePairs
from comparator.plan.tokens.part_tokens import PartTokens, in_order_of_steps
from comparator.plan.tokens.pass_rows import NO_TOKEN_ID, UNKNOWN_ROW
from comparator.plan.tokens.sequences import SequenceTable
from dumper.layout import PADDING_ROW

_Integers = npt.NDArray[np.int64]


class _SideRows(Struct, frozen=True, eq=False):
    """The rows of one side that are tokens of paired sequences, and what became of the others."""

    index: _Integers
    """Shape ``(cells,)``: per cell of the shared space the row that computed it last, -1 for none."""
    alone: int
    """Tokens of sequences that the other side does not have."""
    repeated: int
    """Tokens of sequences that repeat one of the other side."""
    continuing: int
    """Such tokens of sequences that begin behind a cached prefix: continuations of a text that may have parted."""
    unknown: int
    """Rows whose layout is missing."""
    dropped: int
    last_rows: bool
    """Whether the tensor has one row per sequence and pass."""


class SharedSpace(Struct, frozen=True, eq=False):
    """A cell for every position of every paired sequence; made once per pair of runs."""

    baseline: SequenceTable
    target: SequenceTable
    pairs: SequencePairs
    offsets: _Integers
    pair_of: Mapping[Side, npt.NDArray[np.int32]]
    """Per sequence of a side the number of its pair, -1 without one."""
    parted: _Integers
    """Per pair the first position at which the token ids differ; ``NEVER`` where they agree."""
    accepted: Mapping[Side, _Integers]
    """The paths of drafts that competed with others and are on the branch of the other side's tokens."""
    undecided: Mapping[Side, npt.NDArray[np.bool_]]
    """Per position of a side's sequences whether it is not known which of several drafts counts."""

    @classmethod
    def of(cls, baseline: SequenceTable, target: SequenceTable, pairs: SequencePairs) -> SharedSpace:
        pair_of: dict[Side, npt.NDArray[np.int32]] = {
            "baseline": np.full(len(baseline), -1, np.int32),
            "target": np.full(len(target), -1, np.int32),
        }
        lengths = np.zeros(len(pairs.pairs), np.int64)
        for number, pair in enumerate(pairs.pairs):
            pair_of["baseline"][pair.baseline] = number
            pair_of["target"][pair.target] = number
            lengths[number] = max(baseline.end[pair.baseline], target.end[pair.target])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        parted = np.array([pair.parted for pair in pairs.pairs], np.int64)
        accepted: dict[Side, _Integers] = {}
        undecided: dict[Side, npt.NDArray[np.bool_]] = {}
        sides: tuple[tuple[Side, SequenceTable, SequenceTable], ...] = (
            ("baseline", baseline, target),
            ("target", target, baseline),
        )
        for side, table, others in sides:
            accepted[side], undecided[side] = _accepted(side, table, others, pairs, pair_of[side], parted)
        return cls(baseline, target, pairs, offsets, pair_of, parted, accepted, undecided)

    def table(self, side: Side) -> SequenceTable:
        return self.baseline if side == "baseline" else self.target


def _accepted(
    side: Side,
    table: SequenceTable,
    others: SequenceTable,
    pairs: SequencePairs,
    pair_of: npt.NDArray[np.int32],
    parted: _Integers,
) -> tuple[_Integers, npt.NDArray[np.bool_]]:
    """The paths of the drafts of a side that the other side's tokens choose, and the positions that stay undecided.

    ``parted`` is lowered where a draft was accepted that is not the other side's token.
    """
    undecided, found = table.forked.copy(), list[int]()
    for number, fork in table.forks:
        pair = int(pair_of[number])
        if pair < 0:
            continue
        pairing = pairs.pairs[pair]
        tokens = others.tokens_of(pairing.target if side == "baseline" else pairing.baseline)
        nodes, apart = fork.follow(tokens)
        if apart is not None:
            parted[pair] = min(parted[pair], apart)
        found += [fork.path[node] for node in nodes]
        last = table.offsets[number] + fork.start + len(nodes)
        undecided[last - len(nodes) + 1 : last + 1] = False
    return np.array(found, np.int64), undecided


def plan_smart(space: SharedSpace, baseline: list[PartTokens], target: list[PartTokens]) -> TokenPlan:
    """Join the parts of both sides on ``(sequence, position)``, in order of the baseline's sequences."""
    for parts in (baseline, target):
        if parts and all(found.tokens is None for found in parts):
            return _no_identities(parts[0].part.step, parts[0].part.rows)
    one, other = _rows_in(space, "baseline", baseline), _rows_in(space, "target", target)
    here, there = one.index >= 0, other.index >= 0
    pair = np.repeat(np.arange(len(space.pairs.pairs)), np.diff(space.offsets))
    position = np.arange(space.offsets[-1]) - space.offsets[pair] if len(pair) else np.zeros(0, np.int64)
    before = position < space.parted[pair] if len(pair) else np.zeros(0, np.bool_)
    joined = np.flatnonzero(here & there & before)
    counts: dict[Side, dict[str, int]] = {}
    sides: tuple[tuple[Side, _SideRows, _SideRows], ...] = (("baseline", one, other), ("target", other, one))
    for side, rows, lacking in sides:
        only = np.flatnonzero((rows.index >= 0) & ~((lacking.index >= 0) & before))
        counts[side] = _reasons(space, side, rows, lacking, pair[only], position[only], before[only])
    plan = TokenPlan(
        baseline=one.index[joined],
        target=other.index[joined],
        matched=len(joined),
        only_baseline=counts["baseline"],
        only_target=counts["target"],
        dropped_baseline=one.dropped,
        dropped_target=other.dropped,
        sequence=_sequence_numbers(space)[pair[joined]],
        position=position[joined],
        request=_sequence_numbers(space)[pair[joined]].astype(np.int64),
        notes=space.pairs.notes,
    )
    return plan if plan.matched else _with_nothing_joined(plan)


def _rows_in(space: SharedSpace, side: Side, parts: list[PartTokens]) -> _SideRows:
    table, pair_of = space.table(side), space.pair_of[side]
    index = np.full(int(space.offsets[-1]), -1, np.int64)
    alone = continuing = repeated = unknown = dropped = 0
    repeats = np.zeros(len(table) + 1, np.bool_)
    repeats[list(space.pairs.repeats.get(side, ()))] = True
    for found in in_order_of_steps(parts):
        tokens = found.tokens
        if tokens is None or found.part.step is None:
            unknown += found.part.rows
            continue
        padding = tokens.sequence == PADDING_ROW
        unknown += int((tokens.sequence == UNKNOWN_ROW).sum())
        number = table.number_rows(found.part.step, tokens)
        real = np.flatnonzero(number >= 0)
        number, position, token = number[real], tokens.position[real], tokens.token[real]
        drafted = tokens.path[real] != NO_PATH
        # What was computed for a token that a later pass replaced (a rejected draft) is not of this sequence.
        inside = position < table.end[number]
        final = np.full(len(real), NO_TOKEN_ID, np.int64)
        final[inside] = table.token[table.offsets[number[inside]] + position[inside]]
        current = inside & ((final == token) | (final < 0) | (token < 0))
        if len(table.forks) or table.forked.any():
            competing = np.zeros(len(real), np.bool_)
            competing[inside] = table.forked[table.offsets[number[inside]] + position[inside]]
            chosen = inside & np.isin(tokens.path[real], space.accepted[side])
            current = np.where(competing | drafted, chosen, current)
        dropped += int(padding.sum()) + int((~current).sum())
        pair = pair_of[number]
        unpaired = current & (pair < 0) & ~table.begun_again[number]  # else a later sequence has these tokens
        again = unpaired & repeats[number]
        repeated += int(again.sum())
        unpaired &= ~again
        begins = table.start[number] == 0
        alone += int((unpaired & begins).sum())
        continuing += int((unpaired & ~begins).sum())
        used = current & (pair >= 0)
        index[space.offsets[pair[used]] + position[used]] = found.offset + real[used]
    return _SideRows(index, alone, repeated, continuing, unknown, dropped, any(found.last_rows for found in parts))


def _reasons(
    space: SharedSpace,
    side: Side,
    rows: _SideRows,
    lacking: _SideRows,
    pair: _Integers,
    position: _Integers,
    before: npt.NDArray[np.bool_],
) -> dict[str, int]:
    """Count the tokens that only ``side`` has, by why the other side has not."""
    other: Side = "target" if side == "baseline" else "baseline"
    table = space.table(other)
    found: dict[str, int] = {}
    if len(pair):
        numbers = np.array([getattr(pair, other) for pair in space.pairs.pairs], np.int64)[pair]
        drafted = np.minimum(_drafts(space, "baseline")[pair], _drafts(space, "target")[pair])
        inside = position < table.end[numbers]
        place = np.where(inside, table.offsets[numbers] + np.minimum(position, table.end[numbers] - 1), 0)
        undecided = inside & space.undecided[other][place]
        computed, outside = inside & table.computed[place], inside & table.computed_outside[place]
        names = (
            (~before & (position >= drafted), one_sided.DRAFTED),
            (~before, one_sided.PARTED),
            (position < table.start[numbers], one_sided.CACHED_PREFIX),
            (~inside, one_sided.ENDED_EARLIER),
            (undecided & (position >= drafted), one_sided.DRAFTED),
            (undecided, one_sided.UNDECIDED),
            (outside, one_sided.OTHER_STEPS),
            (computed, one_sided.LAST_ROWS if lacking.last_rows else one_sided.NOT_RECORDED),
        )
        choice = np.select([mask for mask, _ in names], list(range(len(names))), default=len(names))
        words = [*(name for _, name in names), one_sided.NOT_COMPUTED]
        for number, count in enumerate(np.bincount(choice, minlength=len(words))):
            if count:
                found[words[number].format(side=other)] = int(count)
    if rows.alone:
        found[one_sided.NO_SEQUENCE.format(side=other)] = rows.alone
    if rows.repeated:
        found[one_sided.REPEATED.format(side=other)] = rows.repeated
    if rows.continuing:
        found[one_sided.NO_CONTINUATION.format(side=other)] = rows.continuing
    if rows.unknown:
        found[one_sided.NO_LAYOUT.format(side=side)] = rows.unknown
    return found


def _drafts(space: SharedSpace, side: Side) -> _Integers:
    """Per pair the first position that this side only drafted."""
    numbers = [getattr(pair, side) for pair in space.pairs.pairs]
    return space.table(side).unconfirmed[numbers] if numbers else np.full(0, NEVER, np.int64)


def _sequence_numbers(space: SharedSpace) -> npt.NDArray[np.int32]:
    return np.array([pair.baseline for pair in space.pairs.pairs], np.int32)


def _with_nothing_joined(plan: TokenPlan) -> TokenPlan:
    if not plan.only_baseline and not plan.only_target:
        return plan
    why = "; ".join(
        f"{count} tokens only in the {side}: {reason}"
        for side, counts in (("baseline", plan.only_baseline), ("target", plan.only_target))
        for reason, count in counts.items()
    )
    return replace(plan, error=f"no token is on both sides ({why})")


def _no_identities(step: int | None, rows: int) -> TokenPlan:
    return TokenPlan(
        baseline=None,
        target=None,
        matched=0,
        error=(
            f"the token layouts do not say which tokens the {rows} rows of step {step} are; record token layouts "
            "(dumper.step(batch) or layout=), or compare with --token-aligner concat_steps"
        ),
    )

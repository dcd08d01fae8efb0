"""Recognising the sequences of one run in the other, by token ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.options import Side
from comparator.plan.tokens.agreement import Columns, PromptAgreement
from comparator.plan.tokens.episodes import NEVER
from comparator.plan.tokens.interface import PartedSequence
from comparator.plan.tokens.pass_rows import UNKNOWN_CONTENT
from comparator.plan.tokens.repeats import repeated, repeated_here, with_prefixes
from comparator.plan.tokens.sequences import SequenceTable

_SHARED_PROMPT = 0.5
"""Sequences whose prompts part are still paired when they agree on this share of the shorter prompt."""


_MOST_NAMED = 20
"""Sequences that part and are named one by one."""


class SequencePair(Struct, frozen=True):
    """A sequence of each side that are the same request."""

    baseline: int
    target: int
    parted: int
    """First position at which the token ids differ; ``NEVER`` when they agree as far as both are known."""


class SequencePairs(Struct, frozen=True):
    pairs: tuple[SequencePair, ...]
    """In order of arrival in the baseline."""
    notes: tuple[str, ...]
    repeats: Mapping[Side, frozenset[int]] = {}
    """Of each side the sequences without a counterpart whose prompt the other side has, fewer times."""


def pair_sequences(baseline: SequenceTable, target: SequenceTable) -> SequencePairs:
    """Pair the sequences of two runs.

    A pair has the same prompt as far as both sides know it. Among several candidates those that agree on the
    most tokens are paired first, then in order of arrival (identical prompts with identical outputs).
    """
    if not _knows_tokens(baseline) or not _knows_tokens(target):
        return _pair_by_arrival(baseline, target)
    free_baseline, free_target = list(range(len(baseline))), list(range(len(target)))
    found: list[SequencePair] = []
    repeats: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    for stage, ones, others in _stages(baseline, target):
        if stage is None:
            again = repeated(ones, others, free_baseline), repeated(others, ones, free_target)
            repeats = frozenset(again[0]), frozenset(again[1])
            free_baseline = [number for number in free_baseline if number not in repeats[0]]
            free_target = [number for number in free_target if number not in repeats[1]]
            continue
        if not free_baseline or not free_target:
            continue
        new = stage(ones, others, free_baseline, free_target)
        found.extend(new)
        taken_baseline, taken_target = {pair.baseline for pair in new}, {pair.target for pair in new}
        free_baseline = [number for number in free_baseline if number not in taken_baseline]
        free_target = [number for number in free_target if number not in taken_target]
    pairs = tuple(sorted(found, key=lambda pair: pair.baseline))
    whole = [pair for pair in pairs if pair.parted >= _shorter_prompt(baseline, target, pair)]
    repeats = (
        repeats[0].union(
            repeated_here(with_prefixes(_told(baseline)), [pair.baseline for pair in whole], free_baseline)
        ),
        repeats[1].union(repeated_here(with_prefixes(_told(target)), [pair.target for pair in whole], free_target)),
    )
    notes = (*_notes(baseline, target, pairs, repeats), *_of_repeats(baseline, target, repeats))
    return SequencePairs(pairs, notes, {"baseline": repeats[0], "target": repeats[1]})


def _told(table: SequenceTable) -> SequenceTable:
    """The sequences with images told apart."""
    return table.with_contents if table.encoded.any() else table


def _shorter_prompt(baseline: SequenceTable, target: SequenceTable, pair: SequencePair) -> int:
    return int(min(baseline.prompt_end[pair.baseline], target.prompt_end[pair.target]))


def _stages(
    baseline: SequenceTable, target: SequenceTable
) -> Iterator[tuple[_Stage | None, SequenceTable, SequenceTable]]:
    """How sequences are paired, in this order; None: where those are set aside that are left over of what both sides
    have."""
    told = known = with_prefixes(baseline), with_prefixes(target)
    if baseline.encoded.any() and target.encoded.any():
        # Of equal texts those with equal images. What is left may have another one, or one that was prepared otherwise.
        told = with_prefixes(baseline.with_contents), with_prefixes(target.with_contents)
        yield from ((stage, *told) for stage in _STAGES[:-1])
    yield from ((stage, *known) for stage in _STAGES[:-1])
    yield None, *told
    # What a cache hid is left open.
    stages = _STAGES if known != (baseline, target) else _STAGES[-1:]
    yield from ((stage, baseline, target) for stage in stages)


def _knows_tokens(table: SequenceTable) -> bool:
    return bool((table.token >= 0).any())


def _pair_by_arrival(baseline: SequenceTable, target: SequenceTable) -> SequencePairs:
    """Without token ids: by request id where both have it, the others in order of arrival."""
    first_baseline = {id: number for number, id in reversed(list(enumerate(baseline.ids)))}
    first_target = {id: number for number, id in reversed(list(enumerate(target.ids)))}
    pairs = {number: first_target[id] for id, number in first_baseline.items() if id in first_target}
    taken = set(pairs.values())
    left_target = [number for number in range(len(target)) if number not in taken]
    left_baseline = [number for number in range(len(baseline)) if number not in pairs]
    pairs.update(zip(left_baseline, left_target, strict=False))
    found = tuple(SequencePair(one, other, NEVER) for one, other in sorted(pairs.items()))
    return SequencePairs(found, ("token ids were not recorded: sequences are paired by id and order of arrival",))


def _equal_pairs(
    baseline: SequenceTable, target: SequenceTable, free_baseline: list[int], free_target: list[int]
) -> list[SequencePair]:
    """Sequences that are equal from the first token to the last."""
    waiting: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number in reversed(free_target):
        waiting[int(target.start[number]), target.tokens_of(number).tobytes()].append(number)
    pairs = []
    for number in free_baseline:
        same = waiting.get((int(baseline.start[number]), baseline.tokens_of(number).tobytes()))
        if same:
            pairs.append(SequencePair(number, same.pop(), NEVER))
    return pairs


def _same_prompt_pairs(
    baseline: SequenceTable, target: SequenceTable, free_baseline: list[int], free_target: list[int]
) -> list[SequencePair]:
    """Sequences with equal prompts, of which both sides know where they end."""
    groups: dict[tuple[int, int, bytes], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, (table, free) in enumerate(((baseline, free_baseline), (target, free_target))):
        for number in free:
            if table.decodes[number]:
                start, known = int(table.start[number]), int(table.known_from[number])
                end = int(table.prompt_end[number])
                groups[start, end, table.tokens_of(number)[known:end].tobytes()][side].append(number)
    pairs: list[SequencePair] = []
    for ones, others in groups.values():
        if ones and others:
            pairs.extend(_best(baseline, target, ones, others, minimum=None))
    return pairs


def _compatible_pairs(
    baseline: SequenceTable, target: SequenceTable, free_baseline: list[int], free_target: list[int]
) -> list[SequencePair]:
    """Sequences that agree on the whole of the shorter prompt, as far as both know its tokens."""
    return _best(baseline, target, free_baseline, free_target, minimum=1.0)


def _shared_prompt_pairs(
    baseline: SequenceTable, target: SequenceTable, free_baseline: list[int], free_target: list[int]
) -> list[SequencePair]:
    """Sequences whose prompts part late: what lies before is comparable."""
    return _best(baseline, target, free_baseline, free_target, minimum=_SHARED_PROMPT)


_Stage = Callable[[SequenceTable, SequenceTable, list[int], list[int]], list[SequencePair]]
_STAGES: tuple[_Stage, ...] = (_equal_pairs, _same_prompt_pairs, _compatible_pairs, _shared_prompt_pairs)


def _best(
    baseline: SequenceTable, target: SequenceTable, ones: list[int], others: list[int], *, minimum: float | None
) -> list[SequencePair]:
    """Pair greedily, those that agree on the most tokens first, then by order of arrival.

    ``minimum`` is the share of the shorter prompt that has to agree; None when prompts are known to be equal.
    """
    columns = Columns(target, others)
    agreement = None if minimum is None else PromptAgreement(baseline, target, columns.numbers, minimum)
    candidates: list[npt.NDArray[np.int64]] = [np.zeros((0, 4), np.int64)]
    for row, one in enumerate(ones):
        chosen = np.arange(len(others)) if agreement is None else agreement.suitable(one)
        if not len(chosen):
            continue
        parted, agreed = columns.compare(baseline.tokens_of(one), chosen)
        if agreement is not None:
            suits = (agreed > 0) & (parted >= agreement.needed(one)[chosen])
            chosen, parted, agreed = chosen[suits], parted[suits], agreed[suits]
        block = np.empty((len(chosen), 4), np.int64)
        block[:, 0], block[:, 1], block[:, 2], block[:, 3] = -agreed, row, chosen, parted
        candidates.append(block)
    ranked = np.concatenate(candidates)
    ranked = ranked[np.lexsort((ranked[:, 2], ranked[:, 1], ranked[:, 0]))]
    free_rows, free_columns = np.ones(len(ones), np.bool_), np.ones(len(others), np.bool_)
    pairs = []
    left = min(len(ones), len(others))
    for _, row, column, parted_at in _rows_as_ints(ranked):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append(SequencePair(ones[row], others[column], parted_at))
            left -= 1
            if not left:
                break
    return pairs


def _rows_as_ints(table: npt.NDArray[np.int64]) -> Iterable[tuple[int, int, int, int]]:
    for row in table:
        yield int(row[0]), int(row[1]), int(row[2]), int(row[3])


def _of_repeats(
    baseline: SequenceTable, target: SequenceTable, repeats: tuple[frozenset[int], frozenset[int]]
) -> Iterable[str]:
    """How many requests a side has more often than the other."""
    for side, other, table, found in (
        ("baseline", "target", baseline, repeats[0]),
        ("target", "baseline", target, repeats[1]),
    ):
        if found:
            shown = ", ".join(table.ids[number] for number in sorted(found)[:3]) + (", …" if len(found) > 3 else "")
            yield (
                f"{len(found)} of {len(table)} sequences of the {side} repeat a prompt that the {other} has fewer "
                f"times: {shown}; one of each is compared for each that the {other} has"
            )


def _notes(
    baseline: SequenceTable,
    target: SequenceTable,
    pairs: tuple[SequencePair, ...],
    repeats: tuple[frozenset[int], frozenset[int]],
) -> Iterable[str]:
    parted = [pair for pair in pairs if pair.parted < _first_draft(baseline, target, pair)]
    for pair in parted[:_MOST_NAMED]:
        one = int(baseline.tokens_of(pair.baseline)[pair.parted])
        other = int(target.tokens_of(pair.target)[pair.parted])
        prompt = _shorter_prompt(baseline, target, pair)
        what = "outputs part" if pair.parted >= prompt else "prompts part"
        yield (
            f"sequence {pair.baseline} ({baseline.ids[pair.baseline]} / {target.ids[pair.target]}): {what} at position "
            f"{pair.parted}, token {one} in the baseline and {other} in the target; compared up to there"
        )
    if len(parted) > _MOST_NAMED:
        yield f"{len(parted) - _MOST_NAMED} further sequences part"
    yield from _other_contents(baseline, target, pairs)
    same_prompts = _identical_prompts(baseline, pairs)
    if same_prompts:
        yield f"{same_prompts} sequences have the prompt of another one: paired by agreement, then order of arrival"
    for name, table, paired in (
        ("baseline", baseline, {pair.baseline for pair in pairs} | repeats[0]),
        ("target", target, {pair.target for pair in pairs} | repeats[1]),
    ):
        alone = [
            table.ids[number] for number in range(len(table)) if number not in paired and not table.begun_again[number]
        ]
        if alone:
            shown = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
            yield f"{len(alone)} of {len(table)} sequences are only in the {name}: {shown}"


def _other_contents(baseline: SequenceTable, target: SequenceTable, pairs: tuple[SequencePair, ...]) -> Iterable[str]:
    """Of paired sequences those in whose place of an image the other has another one."""
    found = []
    for pair in pairs:
        one, other = baseline.encoded_of(pair.baseline), target.encoded_of(pair.target)
        both = min(len(one), len(other), pair.parted)
        differs = one[:both] != other[:both]
        differs &= np.minimum(one[:both], other[:both]) > UNKNOWN_CONTENT
        if differs.any():
            found.append((pair, int(differs.argmax())))
    for pair, position in found[:_MOST_NAMED]:
        yield (
            f"sequence {pair.baseline} ({baseline.ids[pair.baseline]} / {target.ids[pair.target]}): the image or sound "
            f"at position {position} is not the same in both runs, or was prepared otherwise"
        )
    if len(found) > _MOST_NAMED:
        yield f"{len(found) - _MOST_NAMED} further sequences have other images or sound"


def outputs_that_part(
    baseline: SequenceTable, target: SequenceTable, pairs: Iterable[SequencePair]
) -> tuple[PartedSequence, ...]:
    """Pairs whose prompts agree and whose sampled tokens do not."""
    found = []
    for pair in pairs:
        prompt = _shorter_prompt(baseline, target, pair)
        if prompt <= pair.parted < _first_draft(baseline, target, pair):
            one = int(baseline.tokens_of(pair.baseline)[pair.parted])
            other = int(target.tokens_of(pair.target)[pair.parted])
            found.append(PartedSequence(pair.baseline, pair.parted, one, other))
    return tuple(found)


def _first_draft(baseline: SequenceTable, target: SequenceTable, pair: SequencePair) -> int:
    """First position that one side only drafted; ``NEVER`` when they do not part or nothing was drafted."""
    return int(min(baseline.unconfirmed[pair.baseline], target.unconfirmed[pair.target]))


def _identical_prompts(table: SequenceTable, pairs: tuple[SequencePair, ...]) -> int:
    counts: dict[bytes, int] = defaultdict(int)
    for pair in pairs:
        prompt = int(table.prompt_end[pair.baseline])
        counts[table.with_contents.tokens_of(pair.baseline)[:prompt].tobytes()] += 1
    return sum(count for count in counts.values() if count > 1)

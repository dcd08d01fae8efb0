"""Requests that a run served several times: what a cache hid of them, and which the other run has fewer times.

A repeat of a prompt computes its last token alone where a cache has the others. The run itself tells what they were:
the sequence that filled the cache came before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from comparator.plan.tokens.agreement import Columns, PromptAgreement, prefix_hashes, weights_of
from comparator.plan.tokens.sequences import SequenceTable
from tensortap.distinct import distinct

_MOST_LOOKS = 1 << 28
"""Sequences behind a cached prefix, times all of the run, up to which prefixes are looked for."""

Integers = npt.NDArray[np.int64]


def with_prefixes(table: SequenceTable) -> SequenceTable:
    """The sequences with the tokens of their cached prefixes, where the run has computed just one prefix that fits.

    Of several those count that go on as the sequence does, to its end or to that of its prompt. Where a recording began
    after the cache was filled, a prefix may be another's: what is found so is a reason to prefer a pair, and no proof.
    """
    cached = np.flatnonzero(table.known_from > 0)
    if not len(cached) or len(cached) * len(table) > _MOST_LOOKS:
        return table
    weights = weights_of(int(table.end.max(initial=0)))
    token, known_from = table.token.copy(), table.known_from.copy()
    hashes = prefix_hashes(table, weights)
    for number in cached.tolist():
        giver = _giver(table, number, known_from, hashes)
        if giver is None:
            continue
        start, at, source = int(table.known_from[number]), int(table.offsets[number]), int(table.offsets[giver])
        token[at : at + start] = token[source : source + start]
        known_from[number] = known_from[giver]
        # Hashes of prefixes begin with what is known now: later sequences may go on from this one.
        own = slice(at + number, at + number + int(table.end[number]) + 1)
        hashes[own] = prefix_hashes(replace(table, token=token), weights, number)
    return replace(table, token=token, known_from=known_from) if (known_from != table.known_from).any() else table


def _giver(table: SequenceTable, number: int, known_from: Integers, hashes: npt.NDArray[np.uint64]) -> int | None:
    """A sequence before ``number`` whose first tokens those of its cached prefix must be; None where nothing tells."""
    start, end, prompt_end = (int(array[number]) for array in (table.known_from, table.end, table.prompt_end))
    others = np.flatnonzero((known_from[:number] < start) & (table.end[:number] >= start))
    if not len(others):
        return None
    at, own = table.offsets[others] + others, int(table.offsets[number]) + number
    # What went on as the prompt does would have given more of it than the smaller part.
    stops = [(end, start + 1), (prompt_end, prompt_end), (start, start)]
    for stop, least in stops if 2 * start >= prompt_end else (stops[0], stops[2]):
        until = np.minimum(table.end[others], stop)
        with np.errstate(over="ignore"):
            same = hashes[at + until] - hashes[at + start] == hashes[own + until] - hashes[own + start]
        fits = same & (until >= least)
        if fits.any():
            fits &= known_from[others] == known_from[others[fits]].min()
            # What is not known adds nothing to a hash.
            return int(others[fits][0]) if len(distinct(hashes[at + start][fits])) == 1 else None
    return None


def repeated_here(table: SequenceTable, paired: list[int], free: list[int]) -> list[int]:
    """Of the ``free`` sequences those with the prompt of a ``paired`` one of their own side."""

    def prompt(number: int) -> tuple[int, bytes]:
        known, end = int(table.known_from[number]), int(table.prompt_end[number])
        return known, table.tokens_of(number)[known:end].tobytes()

    free = [number for number in free if _is_known(table, number) and not table.begun_again[number]]
    prompts = {prompt(number) for number in paired} if free else set()
    return [number for number in free if prompt(number) in prompts]


def _is_known(table: SequenceTable, number: int) -> bool:
    """Whether enough of a prompt is known to recognise it: half of it."""
    return bool(2 * table.known_from[number] <= table.prompt_end[number])


def repeated(table: SequenceTable, others: SequenceTable, free: list[int]) -> list[int]:
    """Of the ``free`` sequences of a side those whose prompt the other side has as well, as far as its tokens say."""
    numbers = [number for number in free if _is_known(table, number) and not table.begun_again[number]]
    if not numbers or not len(others):
        return []
    columns = Columns(others, list(range(len(others))))
    agreement = PromptAgreement(table, others, columns.numbers, 1.0)
    found = []
    for number in numbers:
        chosen = agreement.suitable(number)
        same_length = np.abs(others.prompt_end[chosen] - int(table.prompt_end[number])) <= 1
        decodes = others.decodes[chosen] & bool(table.decodes[number])
        chosen = chosen[(same_length | ~decodes) & (2 * others.known_from[chosen] <= others.prompt_end[chosen])]
        if len(chosen):
            parted, agreed = columns.compare(table.tokens_of(number), chosen)
            if ((agreed > 0) & (parted >= agreement.needed(number)[chosen])).any():
                found.append(number)
    return found

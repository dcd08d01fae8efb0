"""How far sequences of two runs agree, for many at once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from comparator.plan.tokens.episodes import NEVER
from comparator.plan.tokens.sequences import SequenceTable

_CHUNK_CELLS = 1 << 24
"""Cells of the comparison matrix that are held at once."""

_BASE = 0x9E3779B97F4A7C15
"""An odd number: powers of it give each position a weight of its own (modulo 2**64)."""

Integers = npt.NDArray[np.int64]


class Columns:
    """Sequences of one side as rows of a padded matrix, to compare one sequence with many of them at once."""

    def __init__(self, table: SequenceTable, numbers: list[int]) -> None:
        self._table = table
        self.numbers = np.array(numbers, np.int64)
        self._width = int(table.end[self.numbers].max(initial=0))
        self._chunk = max(1, _CHUNK_CELLS // max(1, self._width))

    def compare(self, tokens: Integers, chosen: Integers) -> tuple[Integers, Integers]:
        """Per chosen sequence the position where it parts from ``tokens`` (``NEVER``) and the tokens agreed before.

        ``chosen`` are indices into ``numbers``; both results have its shape.
        """
        width = min(len(tokens), self._width)
        parted, agreed = [], []
        for begin in range(0, len(chosen), self._chunk):
            matrix = self._matrix(chosen[begin : begin + self._chunk])[:, :width]
            known = (matrix >= 0) & (tokens[:width] >= 0)[None, :]
            differs = known & (matrix != tokens[None, :width])
            first = np.zeros(len(matrix), np.int64)
            if width:
                first = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
            before = np.concatenate([np.zeros((len(matrix), 1), np.int64), np.cumsum(known, axis=1)], axis=1)
            agreed.append(before[np.arange(len(matrix)), first])
            parted.append(np.where(first < width, first, NEVER))
        return np.concatenate(parted).astype(np.int64), np.concatenate(agreed).astype(np.int64)

    @cached_property
    def _all(self) -> Integers | None:
        return self._build(self.numbers) if len(self.numbers) <= self._chunk else None

    def _matrix(self, chosen: Integers) -> Integers:
        if self._all is None:
            return self._build(self.numbers[chosen])
        return self._all if len(chosen) == len(self.numbers) else self._all[chosen]

    def _build(self, numbers: Integers) -> Integers:
        matrix = np.full((len(numbers), self._width), -1, np.int64)
        for row, number in enumerate(numbers):
            tokens = self._table.tokens_of(int(number))
            matrix[row, : len(tokens)] = tokens
        return matrix


class PromptAgreement:
    """Finds sequences that agree on (a share of) the shorter prompt without comparing their tokens.

    Every prefix has a hash, the sum of its tokens times a weight of their position; the hash of a stretch is the
    difference of two. Equal hashes are a reason to compare, not a proof.
    """

    def __init__(self, baseline: SequenceTable, target: SequenceTable, numbers: Integers, share: float) -> None:
        self._baseline, self._target, self._numbers, self._share = baseline, target, numbers, share
        longest = int(max(baseline.end.max(initial=0), target.end.max(initial=0)))
        weights = weights_of(longest)
        self._baseline_gaps, self._target_gaps = _prompts_with_gaps(baseline), _prompts_with_gaps(target)
        self._baseline_hashes, self._target_hashes = prefix_hashes(baseline, weights), prefix_hashes(target, weights)

    def needed(self, one: int) -> Integers:
        """Per sequence of the target the first position at which it may part from sequence ``one``."""
        prompt = np.minimum(int(self._baseline.prompt_end[one]), self._target.prompt_end[self._numbers])
        return np.ceil(prompt * self._share).astype(np.int64)

    def suitable(self, one: int) -> Integers:
        """Indices into ``numbers`` of the sequences that may agree with sequence ``one`` as far as needed."""
        baseline, target, numbers = self._baseline, self._target, self._numbers
        begin = np.maximum(int(baseline.known_from[one]), target.known_from[numbers])
        needed = np.maximum(self.needed(one), begin)
        possible = (begin < target.end[numbers]) & (begin < int(baseline.end[one]))
        # Where a cached prefix hides tokens, prompts of known and different lengths are not the same. A difference
        # of one is none: the last token of a prompt may look like the first that is decoded.
        both_known = target.decodes[numbers] & bool(baseline.decodes[one])
        unequal = np.abs(target.prompt_end[numbers] - int(baseline.prompt_end[one])) > 1
        possible &= ~((begin > 0) & both_known & unequal)
        found = np.flatnonzero(possible)
        at = target.offsets[numbers[found]] + numbers[found]  # a sequence of n tokens has n + 1 prefixes
        with np.errstate(over="ignore"):
            theirs = self._target_hashes[at + needed[found]] - self._target_hashes[at + begin[found]]
            own_at = int(baseline.offsets[one]) + one
            own = self._baseline_hashes[own_at + needed[found]] - self._baseline_hashes[own_at + begin[found]]
        unhashed = self._target_gaps[numbers[found]] | self._baseline_gaps[one]
        return np.asarray(found[(theirs == own) | unhashed], np.int64)


def _prompts_with_gaps(table: SequenceTable) -> npt.NDArray[np.bool_]:
    """Per sequence whether tokens of its prompt are missing between those that are known."""
    return np.array(
        [
            bool((table.tokens_of(number)[int(table.known_from[number]) : int(table.prompt_end[number])] < 0).any())
            for number in range(len(table))
        ],
        np.bool_,
    )


def weights_of(longest: int) -> npt.NDArray[np.uint64]:
    """The weight of each position up to ``longest``."""
    with np.errstate(over="ignore"):
        return np.cumprod(np.full(longest, _BASE, np.uint64), dtype=np.uint64)


def prefix_hashes(
    table: SequenceTable, weights: npt.NDArray[np.uint64], only: int | None = None
) -> npt.NDArray[np.uint64]:
    """Per sequence and prefix length, from 0 to all, a hash; sequences back to back, or ``only`` those of one."""
    if only is not None:
        with np.errstate(over="ignore"):
            tokens = (table.tokens_of(only) + 1).astype(np.uint64)
            return np.concatenate([np.zeros(1, np.uint64), np.cumsum(tokens * weights[: len(tokens)], dtype=np.uint64)])
    hashes = np.zeros(len(table.token) + len(table), np.uint64)
    for number in range(len(table)):
        begin, end = int(table.offsets[number]), int(table.offsets[number + 1])
        with np.errstate(over="ignore"):
            terms = (table.token[begin:end] + 1).astype(np.uint64) * weights[: end - begin]
            hashes[begin + number + 1 : end + number + 1] = np.cumsum(terms, dtype=np.uint64)
    return hashes

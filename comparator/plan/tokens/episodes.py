"""Cutting what a run computes under each request id into episodes, and joining episodes into sequences.

An *episode* is a stretch of passes in which a sequence only grows. A new one begins where a request goes back
(retracted and recomputed) or where an id is used again by another request; ``same_sequence`` tells these apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.plan.tokens.drafts import VERIFY_MODE
from dumper.layout import SequenceSpan

TRAIN_MODE = "train"
SPLIT_MODE = "split_prefill"
_DECODE_MODES = frozenset({"decode", VERIFY_MODE})
_MIXED_MODES = frozenset({"mixed", "extend"})
"""Passes in which some sequences may be decoded beside the prefill of others; newer releases of SGLang say extend."""

NEVER = int(np.iinfo(np.int64).max)


class Episode(Struct):
    """Growth of one sequence; ``add`` follows it from pass to pass."""

    start: int
    first_mode: str
    padded_batch: bool = False
    """Whether it begins in a padded batch: those neither chunk nor retract."""
    end: int = 0
    prefill_end: int = 0
    """End of the prefill, before the first decode pass."""
    decodes: bool = False
    supposed: bool = False
    """Whether ``decodes`` rests on single tokens of mixed passes alone, which may be small chunks of the prompt."""
    unconfirmed: int = NEVER
    """First position that speculative decoding drafted and no later pass confirmed."""
    last_start: int = -1
    last_count: int = -1
    last_mode: str = ""

    @classmethod
    def begin(cls, span: SequenceSpan, mode: str, *, padded_batch: bool = False) -> Episode:
        episode = cls(start=span.start, first_mode=mode, padded_batch=padded_batch)
        episode.add(span, mode)
        return episode

    def continues_with(self, span: SequenceSpan, mode: str) -> bool:
        """Whether a pass continues the episode: it begins where the last one ended, or goes back over drafts."""
        if span.start == self.end:
            return mode != TRAIN_MODE
        if mode == SPLIT_MODE == self.last_mode:
            return span.start == self.last_start and span.count == self.last_count
        speculative = self.last_mode == VERIFY_MODE and mode in _DECODE_MODES
        return speculative and self.last_start < span.start < self.end

    def add(self, span: SequenceSpan, mode: str) -> None:
        decoding = mode in _DECODE_MODES
        single = mode in _MIXED_MODES and span.count == 1 and self.last_start >= 0
        end = span.start + span.count
        if mode == VERIFY_MODE:
            self.unconfirmed = span.start + 1
        elif self.unconfirmed != NEVER:
            self.unconfirmed = end
        if decoding:
            self.supposed = False
        elif single:
            self.supposed = self.supposed or not self.decodes
        elif self.supposed:  # a chunk behind the single tokens: they were chunks as well
            self.supposed = self.decodes = False
        self.decodes = self.decodes or decoding or single
        if not self.decodes:
            self.prefill_end = end
        self.end = end
        self.last_start, self.last_count, self.last_mode = span.start, span.count, mode


class Sequence(Struct):
    """One request as far as a run computes it: joined episodes."""

    id: str
    start: int
    end: int
    decodes: bool
    prompt_end: int
    """End of the prompt where a decode pass shows it, else the end of what was prefilled."""
    unconfirmed: int
    tokens: npt.NDArray[np.int64]
    """Shape ``(end,)``: token ids by position, negative where not known."""
    begun_again: bool = False
    """Whether the next sequence under this id is the same prompt: as after a retraction before the first output."""

    @classmethod
    def begin(cls, id: str, episode: Episode, tokens: npt.NDArray[np.int64]) -> Sequence:
        prompt_end = episode.prefill_end if episode.prefill_end else episode.start + 1
        return cls(
            id, episode.start, episode.end, episode.decodes, prompt_end, episode.unconfirmed, tokens[: episode.end]
        )

    def join(self, episode: Episode, tokens: npt.NDArray[np.int64]) -> None:
        """Add an episode of the same sequence; what it computes again takes the place of what was there."""
        end = max(self.end, episode.end)
        joined = np.full(end, -1, np.int64)
        joined[: len(self.tokens)] = self.tokens
        known = np.flatnonzero(tokens[:end] >= 0)
        joined[known] = tokens[known]
        self.tokens = joined
        if not self.decodes:
            self.prompt_end = max(self.prompt_end, episode.prefill_end)
        self.decodes = self.decodes or episode.decodes
        self.start, self.end = min(self.start, episode.start), end
        self.unconfirmed = episode.unconfirmed


def same_sequence(sequence: Sequence, episode: Episode, tokens: npt.NDArray[np.int64]) -> bool:
    """Whether ``episode``, under the id of ``sequence`` and after it, continues that sequence.

    A retracted request is prefilled again with all its tokens, its outputs included, so that its prefill ends
    where the sequence stood (give or take the token sampled last). A request that reuses the id has other tokens,
    or, with the same prompt, a prefill that ends before the first one's outputs. Padded batches are not retracted,
    and their ids are row numbers: what starts at position 0 is another request.
    """
    if _another_request(episode):
        return False
    if episode.start > sequence.end or episode.first_mode in _DECODE_MODES:
        return True
    if not _agree(sequence, episode, tokens):
        return False
    if sequence.decodes:
        return sequence.end - 1 <= episode.prefill_end <= sequence.end + 2
    return episode.prefill_end > sequence.end or episode.start > sequence.start


def begins_again(sequence: Sequence, episode: Episode, tokens: npt.NDArray[np.int64]) -> bool:
    """Whether ``episode``, which does not continue ``sequence``, computes all of it from the start, under the same id.

    So a request looks that was retracted before its first output was known, and a prompt that is scored twice.
    """
    return (
        not _another_request(episode)
        and not sequence.decodes
        and episode.start <= sequence.start
        and episode.end >= sequence.end
        and _agree(sequence, episode, tokens)
    )


def _another_request(episode: Episode) -> bool:
    return episode.first_mode == TRAIN_MODE or (episode.padded_batch and episode.start == 0)


def _agree(sequence: Sequence, episode: Episode, tokens: npt.NDArray[np.int64]) -> bool:
    """Whether both have the same tokens where both know theirs."""
    overlap = slice(episode.start, min(sequence.end, episode.end))
    before, again = sequence.tokens[overlap], tokens[overlap]
    known = (before >= 0) & (again >= 0)
    return bool(np.array_equal(before[known], again[known]))

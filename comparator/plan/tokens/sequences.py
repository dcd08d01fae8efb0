"""The sequences of a run: every request recognised over all its passes, with its token ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.plan.tokens.drafts import NO_PATH, Fork, forks
from comparator.plan.tokens.episodes import Episode, Sequence, begins_again, same_sequence
from comparator.plan.tokens.pass_rows import NO_TOKEN_ID, NOT_ENCODED, PassRows, RowTokens, join_rows
from comparator.plan.tokens.places import Places
from dumper.layout import SequenceSpan, TokenLayout
from tensortap.distinct import distinct

_DRAFT_PREFIX = "draft"


class SequenceTable(Struct, frozen=True, eq=False, dict=True):
    """All sequences of one side in order of arrival. Positions of sequence k lie at ``offsets[k] + position``."""

    ids: tuple[str, ...]
    start: npt.NDArray[np.int64]
    """First position that was computed; what lies before came from a cache."""
    known_from: npt.NDArray[np.int64]
    """Where the token ids begin that are known; ``start``, but where the run tells what was cached."""
    end: npt.NDArray[np.int64]
    """One past the last position that was computed."""
    prompt_end: npt.NDArray[np.int64]
    decodes: npt.NDArray[np.bool_]
    unconfirmed: npt.NDArray[np.int64]
    """First position that was drafted and never confirmed; a huge number where there is none."""
    offsets: npt.NDArray[np.int64]
    """Shape ``(sequences + 1,)``."""
    token: npt.NDArray[np.int64]
    """Per position the token id, negative where it is not known."""
    encoded: npt.NDArray[np.int64]
    """Per position a number of what an encoder made its row of (an image), ``NOT_ENCODED`` elsewhere. Such rows have no
    token id."""
    computed: npt.NDArray[np.bool_]
    """Per position whether a compared step computed it."""
    computed_outside: npt.NDArray[np.bool_]
    """Per position whether only a step that is not compared computed it."""
    begun_again: npt.NDArray[np.bool_]
    """Per sequence whether its prompt was prefilled once more under its id before anything was decoded."""
    forked: npt.NDArray[np.bool_]
    """Per position whether several drafts were computed for it last, so that its token is not known."""
    forks: tuple[tuple[int, Fork], ...]
    """The number of a sequence and its drafts of one pass, where several compete."""
    numbers: Mapping[tuple[int, int], npt.NDArray[np.int32]]
    """``(step, source)`` to the sequence number of each entry of the layout's ``sequences``."""

    def __len__(self) -> int:
        return len(self.ids)

    def tokens_of(self, sequence: int) -> npt.NDArray[np.int64]:
        """Token ids of a sequence by position, shape ``(end,)``."""
        return self.token[self.offsets[sequence] : self.offsets[sequence + 1]]

    def encoded_of(self, sequence: int) -> npt.NDArray[np.int64]:
        """The same of what encoders made of the rows."""
        return self.encoded[self.offsets[sequence] : self.offsets[sequence + 1]]

    @cached_property
    def with_contents(self) -> SequenceTable:
        """The same sequences with images told apart: what was encoded stands where a token would."""
        return replace(self, token=np.where(self.encoded != NOT_ENCODED, self.encoded, self.token))

    def number_rows(self, step: int, rows: RowTokens) -> npt.NDArray[np.int32]:
        """Per row the number of its sequence, negative for padding and unknown rows."""
        numbers = np.minimum(rows.sequence, -1)
        for source in distinct(rows.source[rows.sequence >= 0]):
            known = self.numbers.get((step, int(source)))
            mine = (rows.source == source) & (rows.sequence >= 0)
            numbers[mine] = -1 if known is None else known[rows.sequence[mine]]
        return numbers


def build_sequences(
    places: Places, rows: PassRows, all_steps: tuple[int, ...], steps: tuple[int, ...]
) -> SequenceTable:
    """Follow every request of a run over ``all_steps``; ``steps`` are those that are compared."""
    return _Builder(places, rows, frozenset(steps)).build(all_steps)


class _Builder:
    def __init__(self, places: Places, rows: PassRows, compared: frozenset[int]) -> None:
        self._places = places
        self._rows = rows
        self._compared = compared
        self._episodes: list[Episode] = []
        self._keys: list[tuple[int, str, int]] = []
        self._latest: dict[tuple[int, str, int], int] = {}
        self._forks: list[Fork] = []
        self._open_forks: dict[tuple[int, str, int], Fork] = {}
        self._row_forked: list[npt.NDArray[np.bool_]] = []
        self._episode_numbers: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
        self._row_episode: list[npt.NDArray[np.int32]] = []
        self._row_position: list[npt.NDArray[np.int64]] = []
        self._row_token: list[npt.NDArray[np.int64]] = []
        self._row_encoded: list[npt.NDArray[np.int64]] = []
        self._row_compared: list[npt.NDArray[np.bool_]] = []

    def build(self, all_steps: tuple[int, ...]) -> SequenceTable:
        for step in all_steps:
            for source in range(len(self._places.coordinates)):
                ranks = self._places.representatives(step, source)
                layout = self._places.layout(step, ranks[0]) if ranks else None
                if layout is None or layout.forward_mode.startswith(_DRAFT_PREFIX):
                    continue
                pieces = [own for rank in ranks if (own := self._rows.own(step, rank)) is not None]
                rows = pieces[0] if len(pieces) == 1 else join_rows(pieces)
                spans = layout.sequences if layout.row_position is None else _spans_of_rows(layout, rows)
                self._follow(
                    step, source, spans, layout, forks(layout, rows.sequence, rows.position, rows.token, rows.path)
                )
                self._keep_rows(step, source, rows)
        return self._finish()

    def _follow(
        self, step: int, source: int, spans: tuple[SequenceSpan, ...], layout: TokenLayout, trees: dict[int, Fork]
    ) -> None:
        mode, padded_batch = layout.forward_mode, layout.batch_shape is not None
        numbers = np.empty(len(spans), np.int32)
        repeated: dict[str, int] = {}
        unique = len({span.id for span in spans}) == len(spans)
        for index, span in enumerate(spans):
            nth = 0
            if not unique:
                nth = repeated.get(span.id, 0)
                repeated[span.id] = nth + 1
            key = (source, span.id, nth)
            number = self._latest.get(key)
            fork = self._open_forks.pop(key, None)
            if number is not None and self._episodes[number].continues_with(span, mode):
                self._episodes[number].add(span, mode)
                if fork is not None:
                    fork.accepted = span.start - fork.start - 1
            else:
                number = self._latest[key] = len(self._episodes)
                self._episodes.append(Episode.begin(span, mode, padded_batch=padded_batch))
                self._keys.append(key)
            numbers[index] = number
            if index in trees:
                self._open_forks[key] = fork = trees[index]
                fork.episode = number
                self._forks.append(fork)
        self._episode_numbers[step, source] = numbers

    def _keep_rows(self, step: int, source: int, rows: RowTokens) -> None:
        real = rows.sequence >= 0
        self._row_episode.append(self._episode_numbers[step, source][rows.sequence[real]])
        self._row_position.append(rows.position[real])
        forked = rows.path[real] != NO_PATH
        self._row_token.append(np.where(forked, NO_TOKEN_ID, rows.token[real]))
        self._row_forked.append(forked)
        self._row_encoded.append(rows.encoded[real])
        self._row_compared.append(np.full(int(real.sum()), step in self._compared))

    def _finish(self) -> SequenceTable:
        episode = np.concatenate([np.zeros(0, np.int32), *self._row_episode])
        position = np.concatenate([np.zeros(0, np.int64), *self._row_position])
        token = np.concatenate([np.zeros(0, np.int64), *self._row_token])
        compared = np.concatenate([np.zeros(0, np.bool_), *self._row_compared])
        forked_row = np.concatenate([np.zeros(0, np.bool_), *self._row_forked])
        sequences, sequence_of = self._join_episodes(episode, position, token)

        end = np.array([sequence.end for sequence in sequences], np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(end)])
        number = sequence_of[episode]
        inside = position < end[number] if len(sequences) else np.zeros(0, np.bool_)
        place = (offsets[number] + position)[inside]
        computed, computed_outside = np.zeros(offsets[-1], np.bool_), np.zeros(offsets[-1], np.bool_)
        computed[place[compared[inside]]] = True
        computed_outside[place[~compared[inside]]] = True
        forked = np.zeros(offsets[-1], np.bool_)
        forked[place] = forked_row[inside]
        encoded = np.full(offsets[-1], NOT_ENCODED, np.int64)
        encoded[place] = np.concatenate([np.zeros(0, np.int64), *self._row_encoded])[inside]
        return SequenceTable(
            ids=tuple(sequence.id for sequence in sequences),
            start=np.array([sequence.start for sequence in sequences], np.int64),
            known_from=np.array([sequence.start for sequence in sequences], np.int64),
            end=end,
            prompt_end=np.array([sequence.prompt_end for sequence in sequences], np.int64),
            decodes=np.array([sequence.decodes for sequence in sequences], np.bool_),
            unconfirmed=np.array([sequence.unconfirmed for sequence in sequences], np.int64),
            offsets=offsets,
            token=np.concatenate([np.zeros(0, np.int64), *(sequence.tokens for sequence in sequences)]),
            encoded=encoded,
            computed=computed,
            computed_outside=computed_outside & ~computed,
            forked=forked,
            forks=tuple((int(sequence_of[fork.episode]), fork) for fork in self._forks),
            begun_again=np.array([sequence.begun_again for sequence in sequences], np.bool_),
            numbers={key: sequence_of[numbers] for key, numbers in self._episode_numbers.items()},
        )

    def _join_episodes(
        self, episode: npt.NDArray[np.int32], position: npt.NDArray[np.int64], token: npt.NDArray[np.int64]
    ) -> tuple[list[Sequence], npt.NDArray[np.int32]]:
        """The sequences, and per episode the number of its sequence."""
        order = np.argsort(episode, kind="stable")
        position, token = position[order], token[order]
        bounds = np.searchsorted(episode[order], np.arange(len(self._episodes) + 1))
        sequences: list[Sequence] = []
        sequence_of = np.zeros(len(self._episodes), np.int32)
        latest: dict[tuple[int, str, int], int] = {}
        for number, (key, found) in enumerate(zip(self._keys, self._episodes, strict=True)):
            mine = slice(bounds[number], bounds[number + 1])
            tokens = np.full(max(found.end, int(position[mine].max(initial=-1)) + 1), -1, np.int64)
            tokens[position[mine]] = token[mine]
            earlier = latest.get(key)
            if earlier is not None and same_sequence(sequences[earlier], found, tokens):
                sequences[earlier].join(found, tokens)
                sequence_of[number] = earlier
            else:
                if earlier is not None:
                    sequences[earlier].begun_again = begins_again(sequences[earlier], found, tokens)
                latest[key] = sequence_of[number] = len(sequences)
                sequences.append(Sequence.begin(key[1], found, tokens))
        return sequences, sequence_of


def _spans_of_rows(layout: TokenLayout, rows: RowTokens) -> tuple[SequenceSpan, ...]:
    """The spans by the rows themselves: of all context-parallel ranks together, of a tree of drafts."""
    spans = []
    for index, span in enumerate(layout.sequences):
        positions = rows.position[rows.sequence == index]
        if len(positions):
            start = int(positions.min())
            spans.append(SequenceSpan(span.id, start, int(positions.max()) + 1 - start))
        else:
            spans.append(span)
    return tuple(spans)

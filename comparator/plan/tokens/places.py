"""Where the ranks of one side stand with regard to tokens: which of them have the same rows, and which not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import xxhash

from comparator.errors import ComparatorError
from comparator.plan.tokens.interface import LayoutSource, SideLayouts
from dumper.layout import TokenLayout
from dumper.reading.protocol import RunError

_DATA_AXES = ("attn_dp", "dp")
"""Axes whose ranks serve different sequences; others are found from the layouts."""

_CONTEXT_AXES = ("attn_cp", "cp", "sp")
"""Axes whose ranks share the sequences and split their rows."""

_SAMPLED_STEPS = 64
"""Steps that are looked at to find the axes along which layouts differ."""

Coordinate = tuple[int, ...]


MOST_ROWS = 1 << 27
"""Rows of one pass on one rank; a layout that claims more is not believed."""


def read_layout(run: LayoutSource, step: int, rank: int) -> TokenLayout | None:
    """The token layout of a step on a rank; raises ComparatorError for one that is malformed or cannot be true."""
    try:
        layout = run.layout(step, rank)
    except RunError as error:
        raise ComparatorError(str(error)) from None
    if layout is not None and not 0 <= layout.rows <= MOST_ROWS:
        raise ComparatorError(
            f"the token layout of step {step}, rank {rank} claims {layout.rows} rows; {MOST_ROWS} is the most"
        )
    return layout


class Places:
    """Ranks by their coordinates on the axes along which token layouts differ."""

    def __init__(self, side: SideLayouts) -> None:
        self._side = side
        self._layouts: dict[tuple[int, int], TokenLayout | None] = {}
        # By identity: ranks that say the same of a step may share one layout.
        self._contradictions: dict[TokenLayout, str | None] = {}
        self._digests: dict[TokenLayout, str] = {}
        self.problems: list[str] = []
        """Sentences about layouts that contradict themselves."""
        self.parallel = side.parallel
        self.ranks: tuple[int, ...] = tuple(sorted(set(side.parallel) | set(side.source.ranks)))

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        key = (step, rank)
        if key not in self._layouts:
            layout = read_layout(self._side.source, step, rank)
            problem = None if layout is None else self._contradiction_of(layout)
            if problem is not None:
                self.problems.append(f"the token layout of rank {rank} in step {step} is not used: {problem}")
                layout = None
            self._layouts[key] = layout
        return self._layouts[key]

    def _contradiction_of(self, layout: TokenLayout) -> str | None:
        if layout not in self._contradictions:
            self._contradictions[layout] = _contradiction(layout)
        return self._contradictions[layout]

    def _digest_of(self, layout: TokenLayout) -> str:
        if layout not in self._digests:
            self._digests[layout] = _digest(layout)
        return self._digests[layout]

    def place(self, rank: int, axis: str) -> tuple[int, int]:
        """``(rank, size)`` on an axis, ``(0, 1)`` when the run does not know it."""
        place = self.parallel.get(rank, {}).get(axis, (0, 1))
        return int(place[0]), int(place[1])

    def known_axes(self) -> tuple[str, ...]:
        """Axes of size over 1, in a fixed order."""
        axes = {axis for places in self.parallel.values() for axis, place in places.items() if place[1] > 1}
        return tuple(sorted(axes))

    @cached_property
    def sampled_steps(self) -> tuple[int, ...]:
        steps = self._side.source.steps
        return tuple(steps[:: max(1, len(steps) // _SAMPLED_STEPS)])

    @cached_property
    def data_axes(self) -> tuple[str, ...]:
        """Axes whose ranks serve different sequences."""
        named = [layout.data_parallel.axis for layout in self._sampled() if layout.data_parallel is not None]
        axes: tuple[str, ...] = ()
        for axis in dict.fromkeys([*named, *_DATA_AXES]):
            if self._partition((*axes, axis)) != self._partition(axes):
                axes = (*axes, axis)
        return (*axes, *(axis for axis in self._found_axes(axes) if axis not in _CONTEXT_AXES))

    @cached_property
    def context_axes(self) -> tuple[str, ...]:
        """Axes whose ranks hold other rows of the same sequences by their own layouts."""
        named = [
            how.axis
            for layout in self._sampled()
            if (how := layout.context_parallel) is not None and how.local and how.size > 1
        ]
        found = [axis for axis in self._found_axes(self.data_axes) if axis in _CONTEXT_AXES]
        return tuple(dict.fromkeys([*named, *found]))

    @property
    def local_context(self) -> bool:
        return bool(self.context_axes)

    @cached_property
    def split_context_axes(self) -> tuple[str, ...]:
        """Axes over which the model splits the rows of the layout (``ContextParallelRows.local`` is False)."""
        named = [
            layout.context_parallel.axis
            for layout in self._sampled()
            if layout.context_parallel is not None and not layout.context_parallel.local
        ]
        return tuple(dict.fromkeys(named))

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The data coordinates in order; ``RowTokens.source`` counts them."""
        return tuple(sorted({self.data_coordinate(rank) for rank in self.ranks}))

    @cached_property
    def _source_index(self) -> Mapping[Coordinate, int]:
        return {coordinate: index for index, coordinate in enumerate(self.coordinates)}

    @cached_property
    def ranks_by_coordinate(self) -> Mapping[Coordinate, tuple[int, ...]]:
        found: dict[Coordinate, list[int]] = {}
        for rank in self.ranks:
            found.setdefault(self.data_coordinate(rank), []).append(rank)
        return {coordinate: tuple(ranks) for coordinate, ranks in found.items()}

    def data_coordinate(self, rank: int) -> Coordinate:
        return tuple(self._on_axis(rank, axis) for axis in self.data_axes)

    def source_of(self, rank: int) -> int:
        return self._source_index[self.data_coordinate(rank)]

    def context_peers(self, rank: int) -> tuple[int, ...]:
        """One rank per context coordinate, among those with the data coordinate of ``rank``."""
        found: dict[Coordinate, int] = {}
        for peer in self.ranks_by_coordinate[self.data_coordinate(rank)]:
            found.setdefault(tuple(self._on_axis(peer, axis) for axis in self.context_axes), peer)
        return tuple(found[coordinate] for coordinate in sorted(found))

    def representatives(self, step: int, source: int) -> tuple[int, ...]:
        """Ranks of a data coordinate with a layout for the step: one per context coordinate."""
        found: dict[Coordinate, int] = {}
        for rank in self.ranks_by_coordinate[self.coordinates[source]]:
            place = tuple(self._on_axis(rank, axis) for axis in self.context_axes)
            if place not in found and self.layout(step, rank) is not None:
                found[place] = rank
        return tuple(found[place] for place in sorted(found))

    def data_peer(self, step: int, rank: int, axis: str, index: int) -> int | None:
        """A rank with a layout for the step that stands at ``index`` on ``axis`` and else where ``rank`` does."""
        wanted = tuple(
            index if name == axis else place
            for name, place in zip(self.data_axes, self.data_coordinate(rank), strict=True)
        )
        context = tuple(self._on_axis(rank, name) for name in self.context_axes)
        candidates = [peer for peer in self.ranks_by_coordinate.get(wanted, ()) if self.layout(step, peer) is not None]
        for peer in candidates:
            if tuple(self._on_axis(peer, name) for name in self.context_axes) == context:
                return peer
        return candidates[0] if candidates else None

    def all_data_peers(self, step: int, rank: int) -> tuple[int | None, ...]:
        """One rank with a layout per data coordinate, None where there is none."""
        found: list[int | None] = []
        for source in range(len(self.coordinates)):
            ranks = self.representatives(step, source)
            found.append(ranks[0] if ranks else None)
        return tuple(found)

    def group_index(self, ranks: tuple[int, ...], rank: int, axis: str) -> tuple[int, int]:
        """``(index, parts)`` of ``rank`` on ``axis`` among ``ranks``: what remains of the axis within them."""
        places = sorted({self.place(peer, axis)[0] for peer in ranks})
        return places.index(self.place(rank, axis)[0]), len(places)

    def _on_axis(self, rank: int, axis: str) -> int:
        if axis in self.parallel.get(rank, {}):
            return self.place(rank, axis)[0]
        # A run that names no such axis in its parallel layout may still say it per pass.
        for step in self.sampled_steps:
            layout = self.layout(step, rank)
            if layout is None:
                continue
            if layout.data_parallel is not None and layout.data_parallel.axis == axis:
                return layout.data_parallel.rank
            if layout.context_parallel is not None and layout.context_parallel.axis == axis:
                return layout.context_parallel.rank
        return 0

    def _sampled(self) -> list[TokenLayout]:
        found = []
        for step in self.sampled_steps:
            for rank in self.ranks:
                layout = self.layout(step, rank)
                if layout is not None:
                    found.append(layout)
        return found

    def _partition(self, axes: tuple[str, ...]) -> dict[int, int]:
        """Rank to the first rank with the same coordinates."""
        first: dict[Coordinate, int] = {}
        return {rank: first.setdefault(tuple(self._on_axis(rank, axis) for axis in axes), rank) for rank in self.ranks}

    def _found_axes(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Further axes along which the layouts differ, as few as explain all differences."""
        differing = self._differing_pairs(known)
        found: list[str] = []
        others = [axis for axis in (*_CONTEXT_AXES, *self.known_axes()) if axis not in known]
        for axis in dict.fromkeys(others):
            explained = {pair for pair in differing if self.place(pair[0], axis)[0] != self.place(pair[1], axis)[0]}
            if explained:
                found.append(axis)
                differing = differing - explained
        return tuple(found)

    def _differing_pairs(self, axes: tuple[str, ...]) -> set[tuple[int, int]]:
        """Pairs of ranks with equal coordinates on ``axes`` and different layouts in some step."""
        partition = self._partition(axes)
        pairs: set[tuple[int, int]] = set()
        for step in self.sampled_steps:
            digests: dict[int, dict[str, int]] = {}
            for rank in self.ranks:
                layout = self.layout(step, rank)
                if layout is not None:
                    digests.setdefault(partition[rank], {}).setdefault(self._digest_of(layout), rank)
            for different in digests.values():
                ranks = list(different.values())
                pairs.update((ranks[0], other) for other in ranks[1:])
        return pairs


def _contradiction(layout: TokenLayout) -> str | None:
    """What is wrong with a layout; None when it can be used."""
    try:
        sequence, position = layout.row_identities()
    except ValueError as error:
        return str(error)
    if len(sequence) != layout.rows or len(position) != layout.rows:
        return f"it names {len(sequence)} rows of {layout.rows}"
    if len(sequence) and (int(sequence.max()) >= len(layout.sequences) or int(position.min()) < 0):
        return "a row belongs to no sequence of the pass"
    if layout.batch_shape is not None and layout.batch_shape[0] * layout.batch_shape[1] != layout.rows:
        return f"a batch of {layout.batch_shape} is not {layout.rows} rows"
    return None


def _digest(layout: TokenLayout) -> str:
    """A text that is equal exactly for layouts of the same rows."""
    hashed = xxhash.xxh3_128()
    spans: Any = [(span.id, span.start, span.count) for span in layout.sequences]
    hashed.update(repr((spans, layout.rows, layout.batch_shape)).encode())
    sequence, position = layout.row_identities()
    hashed.update(sequence.tobytes())
    hashed.update(position.tobytes())
    if layout.token_ids is not None:
        hashed.update(layout.token_ids[sequence >= 0].tobytes())
    return hashed.hexdigest()

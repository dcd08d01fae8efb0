"""What the rows of a tensor are, by row counts and token layouts of all ranks and steps together.

``docs/alignment.md`` gives the reasoning. A *reading* is one meaning of the rows (a rank's own, gathered, ...)
together with an axis over which they may be scattered. Every reading predicts how many rows each rank has in each
step; the readings that predict what was recorded remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from msgspec import Struct

from comparator.errors import PairError
from comparator.plan.tokens.interface import RowsClass, RowsHold
from comparator.plan.tokens.pass_rows import PassRows, RowMeaning, RowTokens
from comparator.plan.tokens.places import Places
from comparator.plan.tokens.splits import block, block_batch, block_length

RowCounts = Mapping[int, tuple[tuple[int, int], ...]]
"""Step to ``(rank, rows)`` of every rank that recorded the tensor."""

_SCATTER_AXES = ("attn_tp", "tp", "sp", "etp", "moe_tp")

_HINT = (
    "say in dims whose rows these are: '# dp:=attn_dp' for rows that each data-parallel rank has for itself, "
    "'# dp:=moe_dp' (an axis of size 1) for rows that every rank has"
)


class Reading(Struct, frozen=True):
    """One way to read the rows of a tensor."""

    meaning: RowMeaning
    scattered_over: str | None
    tier: int
    """Readings of a lower tier are taken before others: whole buffers before parts of them."""


class RowClassifier:
    """Classifies tensors of one side."""

    def __init__(self, places: Places, rows: PassRows) -> None:
        self._places = places
        self._rows = rows

    def classify(
        self, counts: RowCounts, split_axes: tuple[str, ...], data_parallel_axis: str | None
    ) -> dict[int, RowsClass]:
        """Per step what the rows are.

        Raises PairError when readings remain that name different tokens.
        """
        known = {step: rows for step, rows in counts.items() if self._has_layouts(step, rows)}
        result = {step: self._without_layouts(data_parallel_axis) for step in counts if step not in known}
        if not known:
            return result
        readings = self._readings(split_axes, data_parallel_axis)
        together = self._fitting(known, readings, split_axes)
        if together:
            chosen = self._choose(together, known, split_axes)
            reason = self._reason(chosen, len(known))
            result.update({step: self._class_of(chosen, reason) for step in known})
            return result
        result.update(self._classify_by_mode(known, readings, split_axes, data_parallel_axis))
        unread = any(result[step].hold == "unknown" for step in known)
        padded = self._padded_for_graphs(known, data_parallel_axis) if unread and not split_axes else None
        if padded is not None:
            reason = f"{padded.meaning.name}, padded to the sizes of captured graphs, by {len(known)} steps"
            result.update({step: self._class_of(padded, reason) for step in known})
        return result

    def _classify_by_mode(
        self, counts: RowCounts, readings: list[Reading], split_axes: tuple[str, ...], data_parallel_axis: str | None
    ) -> dict[int, RowsClass]:
        """Each kind of pass by itself: engines may change how they share rows between prefill and decode."""
        result = {}
        modes = {step: self._mode(step, rows) for step, rows in counts.items()}
        for mode, steps in groupby(sorted(counts, key=lambda step: (modes[step], step)), modes.__getitem__):
            part = {step: counts[step] for step in steps}
            fitting = self._fitting(part, readings, split_axes)
            if fitting:
                chosen = self._choose(fitting, part, split_axes)
                reason = self._reason(chosen, len(part)) + f" (in {mode} passes)"
                result.update({step: self._class_of(chosen, reason) for step in part})
            else:
                result.update({step: self._unknown(step, part[step], data_parallel_axis) for step in part})
        return result

    def _readings(self, split_axes: tuple[str, ...], data_parallel_axis: str | None) -> list[Reading]:
        """All readings, the preferred ones first."""
        allowed = self._allowed_holds(data_parallel_axis)
        context = self._places.split_context_axes
        readings = []
        for order, meaning in enumerate(self._rows.meanings):
            if meaning.hold not in allowed:
                continue
            if not meaning.splits_context and any(axis in context for axis in split_axes):
                continue  # dims say that context parallelism splits these rows
            # Layouts that tell of a split are better evidence than row counts that scattering would explain too.
            whole_buffer = order < 2 or (order == 2 and bool(context))
            readings.append(Reading(meaning, None, 0 if whole_buffer else order + 2))
            if whole_buffer and not split_axes:
                for index, axis in enumerate(self._scatter_axes(meaning)):
                    tier = 20 if index else 1 if context else 0
                    readings.append(Reading(meaning, axis, tier))
        return sorted(readings, key=lambda reading: reading.tier)

    def _allowed_holds(self, data_parallel_axis: str | None) -> tuple[str, ...]:
        if not self._places.data_axes:
            return ("own",)
        if data_parallel_axis is None:
            return ("own", "gathered")
        return ("own",) if self._is_data_axis(data_parallel_axis) else ("gathered",)

    def _scatter_axes(self, meaning: RowMeaning) -> list[str]:
        """Axes that can split the rows, the likeliest first; axes that part the ranks alike count once."""
        axes = [axis for axis in _SCATTER_AXES if axis in self._places.known_axes()]
        if meaning.hold == "gathered" and "tp" in axes:
            axes = ["tp", *(axis for axis in axes if axis != "tp")]
        found: list[str] = []
        seen = []
        for axis in axes:
            parts = tuple(self._share_place(meaning, rank, axis) for rank in self._places.ranks)
            if parts not in seen and any(size > 1 for _, size in parts):
                seen.append(parts)
                found.append(axis)
        return found

    def _share_place(self, meaning: RowMeaning, rank: int, axis: str) -> tuple[int, int]:
        """``(index, parts)`` of the scattered part that a rank has."""
        if meaning.hold == "gathered":
            return self._places.place(rank, axis)
        ranks = self._places.ranks_by_coordinate[self._places.data_coordinate(rank)]
        return self._places.group_index(ranks, rank, axis)

    def _is_data_axis(self, axis: str) -> bool:
        return axis in self._places.data_axes or any(
            self._places.place(rank, axis)[1] > 1 for rank in self._places.ranks
        )

    def _fitting(self, counts: RowCounts, readings: list[Reading], split_axes: tuple[str, ...]) -> list[Reading]:
        return [
            reading
            for reading in readings
            if all(
                self._predicts(reading, step, rank, rows, split_axes)
                for step, rows_of_ranks in counts.items()
                for rank, rows in rows_of_ranks
            )
        ]

    def _predicts(self, reading: Reading, step: int, rank: int, rows: int, split_axes: tuple[str, ...]) -> bool:
        whole = reading.meaning.count(step, rank)
        if whole is None:
            return False
        if reading.scattered_over is not None:
            index, parts = self._share_place(reading.meaning, rank, reading.scattered_over)
            return rows == block_length(whole, parts, index)
        parts = 1
        for axis in split_axes:
            if axis not in self._places.context_axes and not self._context_is_split(reading.meaning, axis):
                parts *= self._share_place(reading.meaning, rank, axis)[1]
        return rows == whole if parts == 1 else rows in (whole // parts, -(-whole // parts))

    def _context_is_split(self, meaning: RowMeaning, axis: str) -> bool:
        return meaning.splits_context and axis in self._places.split_context_axes

    def _padded_for_graphs(self, counts: RowCounts, data_parallel_axis: str | None) -> Reading | None:
        """Own or gathered rows whose shares are padded, in some steps, beyond what the layouts say.

        A graph is replayed at the size at which it was captured. Every row count has to leave room for the rows of
        the layout, and some have to be less than twice as many: rows that are repeated (a token for each of its
        experts) never are.

        Raises PairError when both kinds of rows fit equally well.
        """
        scores: list[tuple[int, Reading]] = []
        for meaning in self._rows.meanings[:2]:
            if meaning.hold not in self._allowed_holds(data_parallel_axis):
                continue
            exact, close, fits = 0, False, True
            for step, rows_of_ranks in counts.items():
                for rank, rows in rows_of_ranks:
                    if meaning.count(step, rank) == rows:
                        exact, close = exact + 1, close or rows > 0
                        continue
                    share = self._rows.graph_share(meaning.hold, step, rank, rows)
                    fits = fits and share is not None
                    close = close or (share is not None and share[1] < 2 * share[0])
            if fits and close:
                scores.append((exact, Reading(meaning, None, 0)))
        if len(scores) == 2 and scores[0][0] == scores[1][0]:
            raise PairError(
                f"rows could be {_words(scores[0][1])} or {_words(scores[1][1])}, both padded to the sizes of graphs",
                hint=_HINT,
            )
        return max(scores, key=lambda score: score[0])[1] if scores else None

    def _choose(self, fitting: list[Reading], counts: RowCounts, split_axes: tuple[str, ...]) -> Reading:
        """The reading to use. Raises PairError when equally good ones name different tokens."""
        best = [reading for reading in fitting if reading.tier == fitting[0].tier]
        first = best[0]
        if split_axes:
            return first
        for other in best[1:]:
            for step, rows in counts.items():
                for rank, _ in rows:
                    if not _coincide(self._tokens(first, step, rank), self._tokens(other, step, rank)):
                        raise PairError(
                            f"rows could be {_words(first)} or {_words(other)}: both have the recorded row counts "
                            f"on every rank that recorded them (step {step}, rank {rank} would be other tokens)",
                            hint=_HINT,
                        )
        return first

    def _tokens(self, reading: Reading, step: int, rank: int) -> RowTokens | None:
        tokens = reading.meaning.tokens(step, rank)
        if tokens is None or reading.scattered_over is None:
            return tokens
        index, parts = self._share_place(reading.meaning, rank, reading.scattered_over)
        layout = self._places.layout(step, rank)
        if reading.meaning.hold == "own" and layout is not None and layout.batch_shape is not None:
            return tokens.take(block_batch(layout.batch_shape, parts, index))
        return tokens.take(block(len(tokens), parts, index))

    def _class_of(self, reading: Reading, reason: str) -> RowsClass:
        places = self._places
        axes: tuple[str, ...] = ()
        if reading.meaning.hold == "own":
            axes = places.data_axes
            if reading.meaning.splits_context:
                axes = (*axes, *places.context_axes, *places.split_context_axes)
        scattered = () if reading.scattered_over is None else (reading.scattered_over,)
        hold: RowsHold = "gathered" if reading.meaning.hold == "gathered" else "own"
        return RowsClass(hold, tuple(dict.fromkeys(axes)), scattered, reason)

    def _unknown(self, step: int, rows: tuple[tuple[int, int], ...], data_parallel_axis: str | None) -> RowsClass:
        shown = ", ".join(f"rank {rank}: {count}" for rank, count in rows[:4])
        reason = f"rows of step {step} ({shown}) fit no reading of the token layouts"
        return RowsClass("unknown", self._declared_axes(data_parallel_axis), (), reason)

    def _without_layouts(self, data_parallel_axis: str | None) -> RowsClass:
        return RowsClass("unknown", self._declared_axes(data_parallel_axis), (), "no token layout was recorded")

    def _declared_axes(self, axis: str | None) -> tuple[str, ...]:
        return (axis,) if axis is not None and self._is_data_axis(axis) else ()

    def _has_layouts(self, step: int, rows: tuple[tuple[int, int], ...]) -> bool:
        return all(self._places.layout(step, rank) is not None for rank, _ in rows)

    def _mode(self, step: int, rows: tuple[tuple[int, int], ...]) -> str:
        modes = [layout.forward_mode for rank, _ in rows if (layout := self._places.layout(step, rank)) is not None]
        busy = [mode for mode in modes if mode != "idle"]
        return (busy or modes or ["idle"])[0]

    def _reason(self, reading: Reading, steps: int) -> str:
        return f"{_words(reading)}, by the row counts of {steps} step{'s' if steps != 1 else ''}"


def _coincide(one: RowTokens | None, other: RowTokens | None) -> bool:
    return one is not None and other is not None and one.same_as(other)


def _words(reading: Reading) -> str:
    if reading.scattered_over is None:
        return reading.meaning.name
    return f"{reading.meaning.name} scattered over {reading.scattered_over}"

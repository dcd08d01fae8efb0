"""What a replay has left, handed to the writer: in few copies, by a plan that is worked out once.

A graph is captured for a number of tokens or requests, and a smaller pass is padded up to it; the last rows then hold
what an earlier replay or the padding left, and are not recorded.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from dumper.adapters.protocol import GraphFacts, PassSize
from dumper.recording.graphs.captured import CapturedGraph, GraphTap
from dumper.recording.graphs.handover import Entry, Handover
from dumper.recording.plans import Plan
from dumper.recording.reductions import ReducedValues, reduced_together
from dumper.rules.levels import FULL, Level
from dumper.writing.items import Description
from tensortap.dims import BATCH, REQUEST, TOKEN, DimsError, parse_dims

if TYPE_CHECKING:
    from dumper.values.source import Source

MOST_AT_ONCE = 4096
"""Values that are reduced by one launch."""
LARGEST_GAP = 512 << 10
"""Bytes between two values that are copied along, since one copy costs less than two."""
_MOST_PLANS = 1000
"""Of one graph; conditions on the step make a new one in every step."""


class Session(Protocol):
    """The part of the session that replays need."""

    def plan_in_graph(
        self, source: Source, dims: str | None, tags: Mapping[str, Any], step: int | None, facts: GraphFacts | None
    ) -> Plan:
        """What to do with a value. Raises UnrecordableError."""

    def submit_planned(self, plan: Plan, value: torch.Tensor, step: int | None) -> None:
        """Record one value. Raises what the copy raises; the loss is counted."""

    def count_lost(self, reason: str) -> None:
        """Count a value that was not handed over."""

    @property
    def watches_samples(self) -> bool:
        """Whether values of which a sample is kept have to be looked at as a whole."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Values that lie near each other in memory, copied together."""

    memory: torch.Tensor
    """uint8."""
    values: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class ReplayPlan:
    """What is recorded after a replay."""

    pieces: tuple[Piece, ...]
    reduced: tuple[ReducedValues, ...]
    """Values that kernels reduce, each time several at once."""
    single: tuple[tuple[Plan, torch.Tensor], ...]
    """Values that are worked on by themselves."""
    unusable: int
    """Values with tags or dims that a file cannot hold."""
    count: int
    """Values in all, without these."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """The bytes that are kept of a value."""

    tap: GraphTap
    nbytes: int
    description: Description


class Replays:
    """Plans of all graphs for one session."""

    def __init__(self, session: Session, handover: Handover) -> None:
        self._session = session
        self._handover = handover
        self._plans: weakref.WeakKeyDictionary[CapturedGraph, dict[Any, ReplayPlan]] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Filter or level have changed."""
        self._plans = weakref.WeakKeyDictionary()

    def submit(
        self,
        graph: CapturedGraph,
        added: Mapping[str, Any],
        step: int | None,
        rules_step: int | None,
        size: PassSize | None,
    ) -> int:
        """Record what a replay has left, on the current stream. Returns how many values that were.

        ``added``: tags of the thread; ``rules_step``: the step where filter or level ask for it; ``size``: of the pass.
        Raises what a copy raises; what is lost is counted.
        """
        plans = self._plans.get(graph)
        if plans is None:
            plans = self._plans[graph] = {}
        key = (rules_step, size, *added.items(), *map(type, added.values()))
        try:
            plan = plans.get(key)
        except TypeError:  # a tag that cannot be hashed
            plan, key = None, ()
        if plan is None:
            plan = self._make(graph, added, rules_step, size)
            if key:
                if len(plans) >= _MOST_PLANS:
                    plans.clear()
                plans[key] = plan
        self._carry_out(plan, step)
        return plan.count

    def _carry_out(self, plan: ReplayPlan, step: int | None) -> None:
        session = self._session
        failure: Exception | None = None
        for piece in plan.pieces:
            try:
                self._handover.copy(piece.values, piece.memory, step)
            except Exception as error:
                failure = error
        single = list(plan.single)
        for reduced in plan.reduced:
            try:
                if not self._handover.reduce(reduced, step):
                    single += reduced.values
            except Exception as error:
                failure = error
        for of_one, value in single:
            try:
                session.submit_planned(of_one, value, step)
            except Exception as error:
                failure = error
        for _ in range(plan.unusable):
            session.count_lost("lost_encoding")
        if failure is not None:
            raise failure

    def _make(
        self, graph: CapturedGraph, added: Mapping[str, Any], rules_step: int | None, size: PassSize | None
    ) -> ReplayPlan:
        kept: list[_Kept] = []
        reducible: list[tuple[Plan, torch.Tensor]] = []
        single: list[tuple[Plan, torch.Tensor]] = []
        unusable = 0
        for tap in graph.taps:
            try:
                plan = self._session.plan_in_graph(tap.source, tap.dims, {**added, **tap.tags}, rules_step, graph.facts)
            except Exception:
                unusable += 1
                continue
            if plan.chosen is None:
                continue
            rows = rows_of_pass(tap.value.shape, tap.dims, graph.facts, size)
            value = tap.value if rows is None else tap.value[:rows]
            if self._handover.can_reduce(plan, value):
                reducible.append((plan, value))
                continue
            bytes_kept = self._bytes_kept(plan, value)
            if bytes_kept is None:
                single.append((plan, value))
            else:
                dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
                level = plan.chosen if shape or plan.chosen.kind != "sample" else FULL
                kept.append(_Kept(tap, bytes_kept, plan.describe(dtype, shape, False, level)))
        pieces, reduced = tuple(pieces_of(kept)), tuple(_reduced(reducible))
        return ReplayPlan(pieces, reduced, tuple(single), unusable, len(kept) + len(reducible) + len(single))

    def _bytes_kept(self, plan: Plan, value: torch.Tensor) -> int | None:
        """How many of the first bytes of a contiguous value are kept; None where its level keeps something else."""
        level: Level = plan.chosen or FULL
        if plan.whole:
            return _nbytes(value)
        if level.rows is None or self._session.watches_samples:
            return None
        return _nbytes(value[: level.rows] if value.dim() else value)


def _reduced(values: Iterable[tuple[Plan, torch.Tensor]]) -> Iterable[ReducedValues]:
    """The values by what one launch can do: fingerprints of any tensors, statistics of those of one dtype."""
    groups: dict[tuple[str, torch.dtype | None], list[tuple[Plan, torch.Tensor]]] = {}
    for plan, value in values:
        kind = (plan.chosen or FULL).kind
        groups.setdefault((kind, value.dtype if kind == "stats" else None), []).append((plan, value))
    for (kind, _), group in groups.items():
        for first in range(0, len(group), MOST_AT_ONCE):
            yield reduced_together(kind, group[first : first + MOST_AT_ONCE])


def _nbytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def pieces_of(values: Sequence[_Kept]) -> Iterable[Piece]:
    """The pieces of memory that hold these values, which come in the order in which they lie in memory."""
    together: list[_Kept] = []
    for value in values:
        if together and not _is_near(together[-1], value):
            yield _piece(together)
            together = []
        together.append(value)
    if together:
        yield _piece(together)


def _is_near(previous: _Kept, value: _Kept) -> bool:
    gap = value.tap.place.offset - (previous.tap.place.offset + previous.nbytes)
    return previous.tap.chunk is value.tap.chunk and 0 <= gap <= LARGEST_GAP


def _piece(values: Sequence[_Kept]) -> Piece:
    first, last = values[0].tap.place.offset, values[-1].tap.place.offset + values[-1].nbytes
    entries = tuple((value.description, value.tap.place.offset - first, value.nbytes) for value in values)
    return Piece(values[0].tap.chunk[first:last], entries)


def rows_of_pass(shape: Sequence[int], dims: str | None, facts: GraphFacts | None, size: PassSize | None) -> int | None:
    """How many of the first rows (of the first dimension) a pass of ``size`` has filled; None for all of them.

    Only where dims say that the first dimension counts tokens (``t``) or requests (``request``, ``b``) and is whole on
    this rank. A dimension of tokens with as many rows as the graph has requests holds the last token of each. Where the
    engine's graph is known (``facts``), rows that fit neither of its sizes are left alone, such as those that
    data-parallel ranks have gathered.
    """
    counts = _counted(dims)
    if size is None or counts is None or not shape:
        return None
    rows = shape[0]
    tokens, requests = (None, None) if facts is None else (facts.tokens, facts.requests)
    if tokens is None and requests is None:
        kept = None if size.shared else size.tokens if counts == "tokens" else size.requests
    elif counts == "tokens" and rows == tokens:
        kept = size.tokens
    else:
        kept = size.requests if rows == requests else None
    return kept if kept is not None and kept < rows else None


def _counted(dims: str | None) -> Literal["tokens", "requests"] | None:
    """What the first dimension counts."""
    if dims is None:
        return None
    try:
        parsed = parse_dims(dims)
    except DimsError:
        return None
    first = parsed.dimensions[0]
    if parsed.row_order is not None or not all(modifier.partial for modifier in first.modifiers):
        return None
    if first.names == (BATCH,) or dims.split(None, 1)[0].partition("[")[0] == REQUEST:
        return "requests"
    return "tokens" if first.names == (TOKEN,) else None

"""What the token stage gets from the rest of the comparator, and what it gives back.

Unsharding turns the ranks of one step into *parts*: arrays that hold whole tokens. There is one part when every
rank knows all tokens of the pass (or the rows are a gathered buffer), and one per data-parallel (or
context-parallel) rank when each holds tokens of its own. The token stage says

- before unsharding, what the rows of a tensor are (``classify``): that decides which axes part tokens;
- after unsharding, which rows of which parts make the list of tokens that both sides have (``plan``).

Both work on metadata alone. Only row counts and token layouts come in, so that plans can be printed and cached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from comparator.options import Side
from dumper.layout import TokenLayout

RowsHold = Literal["own", "gathered", "unknown"]


class LayoutSource(Protocol):
    """The part of a run that the token stage reads (``dumper.open_run`` gives it)."""

    @property
    def steps(self) -> tuple[int, ...]: ...

    @property
    def ranks(self) -> tuple[int, ...]: ...

    def layout(self, step: int, rank: int) -> TokenLayout | None: ...


class RowsQuery(Struct, frozen=True):
    """The token dimension of one tensor in one step, on every rank that recorded it."""

    side: Side
    step: int | None
    rows: tuple[tuple[int, int], ...]
    """``(rank, rows)``: length of the token dimension there; batch x sequence for ``b s`` tensors."""
    split_axes: tuple[str, ...] = ()
    """Parallel axes that ``dims`` puts on the token dimension, such as ``cp`` in ``t[cp:zigzag]``."""
    data_parallel_axis: str | None = None
    """The axis of an explicit ``dp:=attn_dp`` in ``dims``."""


class RowsClass(Struct, frozen=True):
    """What the rows of a tensor are, in one step, by the recorded layouts of all ranks."""

    hold: RowsHold
    token_axes: tuple[str, ...] = ()
    """Axes along which ranks hold different tokens: there is one part per coordinate on them. Empty when
    every rank holds all tokens (gathered, or no data parallelism)."""
    scattered_over: tuple[str, ...] = ()
    """Axes over whose ranks the rows are split in order, although ``dims`` does not say so (a
    reduce-scattered residual): they are concatenated along the token dimension before anything else."""
    reason: str = ""
    """Why, in one sentence, for ``--explain``."""


class TokenPart(Struct, frozen=True):
    """One array that unsharding leaves for one step."""

    step: int | None
    coordinates: tuple[tuple[str, int], ...]
    """Coordinates on the token axes, ``(("attn_dp", 1),)``; empty for the only part of a step."""
    rank: int
    """A rank of the part: its layout describes the rows when ``hold`` is ``own``."""
    rows: int
    """Length of the token dimension, padding included."""
    hold: RowsHold


class TokenPlan(Struct, frozen=True, eq=False):
    """Which rows make the joined token list of both sides, in the same order.

    ``baseline`` and ``target`` are int64 arrays of equal length ``matched``: indices into the rows of all parts
    of that side, concatenated in the order in which the parts were given. None stands for "all rows, as they
    are" (then nothing is copied).
    """

    baseline: npt.NDArray[np.int64] | None
    target: npt.NDArray[np.int64] | None
    matched: int
    """Rows that both sides have."""
    only_baseline: Mapping[str, int] = field(default_factory=dict)
    """Tokens that only the baseline has: reason to count (``cached prefix in target``, ``after the outputs
    part``, ...). Padding and dummy rows are no tokens and are not counted here."""
    only_target: Mapping[str, int] = field(default_factory=dict)
    dropped_baseline: int = 0
    """Padding and dummy rows that were left out."""
    dropped_target: int = 0
    sequence: npt.NDArray[np.int32] | None = None
    """Per joined row the number of its sequence (order of arrival in the baseline)."""
    position: npt.NDArray[np.int64] | None = None
    """Per joined row the position of its token in the sequence."""
    request: npt.NDArray[np.int64] | None = None
    """Per joined row the number of its sequence among all of the baseline, in order of arrival; None where that is not
    known. The same for all passes of a sequence, which ``sequence`` is only where plans are made for whole runs."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: which sequence parted at which token, identical prompts paired by arrival."""
    other_tokens: tuple[str, ...] = ()
    """Where joined rows are known not to be the same tokens, in sentences."""
    error: str | None = None
    """Set when no plan can be made; says what to do. The comparison is then ``errored``."""

    def describe_row(self, row: int) -> str | None:
        """Name joined row ``row`` for people, ``sequence 0, position 5``; None when it is not known."""
        if self.sequence is None or self.position is None or not 0 <= row < len(self.sequence):
            return None
        return f"sequence {int(self.sequence[row])}, position {int(self.position[row])}"


def consecutive(index: npt.NDArray[np.int64]) -> slice | None:
    """The rows of an index as a slice; None where they do not follow on one another, or there are none."""
    if index.size and index[-1] - index[0] == index.size - 1 and bool((np.diff(index) == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return None


class PartedSequence(Struct, frozen=True):
    """A sequence whose sampled tokens differ from some position on: what follows is another text."""

    sequence: int
    """Number in the baseline, in order of arrival (``TokenPlan.request``)."""
    position: int
    """Of the first token that differs."""
    baseline: int
    """Token id."""
    target: int


class TokenAligner(Protocol):
    """Made once per pair of runs; plans are cached inside, keyed by their arguments."""

    def classify(self, query: RowsQuery) -> RowsClass:
        """Say what the rows of a tensor are, by one step alone. Raises PairError as ``classify_steps`` does."""
        ...

    def classify_steps(
        self,
        side: Side,
        rows: Mapping[int | None, tuple[tuple[int, int], ...]],
        split_axes: tuple[str, ...] = (),
        data_parallel_axis: str | None = None,
    ) -> Mapping[int | None, RowsClass]:
        """Say what the rows of one tensor are in each step, by all its steps together.

        ``rows`` maps a step to ``(rank, rows)`` of every rank that recorded the tensor. Raises PairError, with a
        hint, when the rows can be read in several ways that name different tokens.
        """
        ...

    def plan(self, baseline: tuple[TokenPart, ...], target: tuple[TokenPart, ...]) -> TokenPlan:
        """Join the parts of both sides. In ``per_step`` mode both sides hold the parts of one step."""
        ...

    def parted(self) -> tuple[PartedSequence, ...]:
        """Sequences of which both sides sampled other tokens; none where token ids were not recorded."""
        ...

    def encoded(self) -> Mapping[int, npt.NDArray[np.bool_]]:
        """Of sequences that hold images or sound, by the number that ``TokenPlan.request`` gives them, whether the row
        of each position comes out of an encoder on either side."""
        ...

    def token_ids(self) -> Sequence[npt.NDArray[np.int64]]:
        """Token ids of the baseline's sequences by position, negative where unknown; the n-th are those of the sequence
        that ``TokenPlan.request`` calls n."""
        ...


class SideLayouts(Struct, frozen=True, eq=False):
    """What the token stage may know about one side."""

    source: LayoutSource
    parallel: Mapping[int, Mapping[str, tuple[int, int]]]
    """Per rank its coordinates: axis to ``(rank, size)``."""
    steps: tuple[int, ...]
    """The steps that are compared, in order (after ``--start-step`` and ``--end-step``)."""

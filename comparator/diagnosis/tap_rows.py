"""What the analysis gets of one tap: both sides as rows × channels, and what each row is."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.diagnosis.kernel import FirstLook, to_single
from comparator.diagnosis.kernel.reference import Array, Float, Integer, Single
from tensortap.distinct import distinct

__all__ = [
    "Extent", "Float", "Integer", "Mask", "RowLabels", "Selection", "SideRows", "Single", "TapKey", "TapRows",
    "extent_of", "groups_of", "has_whole_prefix", "join_rows", "label_rows",
]  # fmt: skip

Mask = npt.NDArray[np.bool_]
POSITION_RANGES = tuple(4**power for power in range(2, 10))
"""Where ranges of positions begin: a window, a page, a range that rope or a kernel handles otherwise."""
ALL = 0.9
"""Share of the rows from which all are said to differ."""
_KEPT, _MOST_KEPT = 4, 1 << 18
"""Labels that are remembered, and how many rows they may have: most taps of a run have the same rows."""
PRECISE, COMPLETE = 0.9, 0.8
"""Shares of the rows that are in the group, and of the group that are such rows, from which they are that group."""


class TapKey(Struct, frozen=True):
    """Names one tap of one layer, over all steps."""

    name: str
    layer: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    """What else tells it from others of the name: rank, occurrence, ..., sorted."""

    @property
    def is_gradient(self) -> bool:
        """Whether it is what a backward pass computed."""
        return ("stream", "grad") in self.tags

    @property
    def label(self) -> str:
        """The tap for people: ``attn_output layer 3``."""
        layer = () if self.layer is None else (f"layer {self.layer}",)
        return " ".join([self.name, *layer, *(f"{key}={value}" for key, value in self.tags)])


class RowLabels(Struct, frozen=True, eq=False):
    """Which token each row is. All arrays have shape ``(rows,)``. What is worked out of labels is remembered by their
    identity: ``_shared`` makes one object of those that are equal."""

    sequence: Integer
    position: Integer
    decode: Mask
    """The token came alone in its forward pass, after others of its sequence."""
    known: bool = True
    """False when the rows have no identity and are told apart by their number."""
    border: Mask | None = None
    """The token is the first of a later chunk of its prompt; None where no forward passes are known."""

    def __len__(self) -> int:
        return len(self.sequence)

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared, (self.sequence, self.position, self.decode, self.known, self.border)

    def taken(self, rows: Integer) -> RowLabels:
        """Those of some rows, by their numbers."""
        border = None if self.border is None else self.border[rows]
        return RowLabels(self.sequence[rows], self.position[rows], self.decode[rows], self.known, border)

    @property
    def keys(self) -> Integer:
        """One number per row, equal for the same token in another tap."""
        return (self.sequence << 32) + self.position

    def describe(self, row: int) -> str:
        """The row for people: ``sequence 0, position 5``."""
        if not self.known:
            return f"row {row}"
        return f"sequence {int(self.sequence[row])}, position {int(self.position[row])}"


_labels: deque[RowLabels] = deque(maxlen=_KEPT)
_passes: deque[tuple[Integer, Integer, Integer, RowLabels]] = deque(maxlen=_KEPT)
"""Sequence, position and step of rows, and the labels that were made of them."""


def _shared(sequence: Integer, position: Integer, decode: Mask, known: bool, border: Mask | None) -> RowLabels:
    """Labels, as one object where they equal others that were made lately."""
    for one in reversed(tuple(_labels)):  # other threads may compare as well
        if (
            one.known == known
            and np.array_equal(one.sequence, sequence)
            and np.array_equal(one.position, position)
            and np.array_equal(one.decode, decode)
            and (one.border is border or (one.border is not None and border is not None
                                          and np.array_equal(one.border, border)))
        ):  # fmt: skip
            with contextlib.suppress(ValueError):  # it has just been dropped
                _labels.remove(one)
            _labels.append(one)  # those that were met last stay
            return one
    made = RowLabels(sequence, position, decode, known, border)
    if len(made) <= _MOST_KEPT:
        _labels.append(made)
    return made


def label_rows(
    rows: int,
    sequence: npt.NDArray[np.integer] | None = None,
    position: npt.NDArray[np.integer] | None = None,
    step: npt.NDArray[np.integer] | None = None,
) -> RowLabels:
    """Labels of ``rows`` rows, from the joined token list of a pair.

    ``step`` is the forward pass of each row on one side; without it no row counts as decode. Without ``sequence`` or
    ``position`` the rows have no identity.
    """
    if sequence is None or position is None:
        nothing = np.zeros(rows, np.bool_)
        return _shared(np.zeros(rows, np.int64), np.arange(rows, dtype=np.int64), nothing, False, None)
    number, place = np.asarray(sequence, np.int64), np.asarray(position, np.int64)
    if step is None or not rows:
        return _shared(number, place, np.zeros(rows, np.bool_), True, None)
    steps = np.asarray(step, np.int64)
    for *known, labels in tuple(_passes):
        if all(
            one is other or np.array_equal(one, other) for one, other in zip(known, (number, place, steps), strict=True)
        ):
            return labels
    found = _labels_of_passes(number, place, steps)
    if rows <= _MOST_KEPT:
        _passes.append((number, place, steps, found))
    return found


def _labels_of_passes(number: Integer, place: Integer, step: Integer) -> RowLabels:
    passes = (step << 32) + number
    _, inverse, count = np.unique(passes, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    decode = (count[inverse] == 1) & (place > 0)
    first = np.full(len(count), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, place)
    border = (place == first[inverse]) & (place > 0) & ~decode
    return _shared(number, place, decode, True, border)


class Selection(Struct, frozen=True, eq=False):
    """How a router chooses experts: the largest scores, or scores and biases, of the best groups of experts."""

    scoring: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    """Equally many experts each, in order."""
    best_groups: int = 1
    biased: bool = False
    """A bias is added to the scores for the choice (and a group's score is that of its best two)."""
    baseline_bias: Single | None = None
    """Shape ``(experts,)``; None where it was not recorded."""
    target_bias: Single | None = None

    @property
    def known(self) -> bool:
        """Whether what is recorded tells the choice."""
        return not self.biased or (self.baseline_bias is not None and self.target_bias is not None)


class SideRows(Struct, frozen=True, eq=False):
    """Both sides of one tensor. Arrays of shape ``(rows, channels)`` in the order of ``labels``, of dtypes that float32
    holds; read-only."""

    baseline: Array
    target: Array
    labels: RowLabels

    def single(self) -> tuple[Single, Single]:
        """Both sides in float32."""
        return to_single(self.baseline), to_single(self.target)


class TapRows(Struct, frozen=True, eq=False):
    """Everything that is measured of one tap; see ``comparator.diagnosis.profiling``."""

    key: TapKey
    values: SideRows
    baseline_dtype: str = "bfloat16"
    target_dtype: str = "bfloat16"
    """Dtypes as they were recorded: they give the unit roundoff of the floors."""
    operands: tuple[SideRows, ...] = ()
    """What a sum adds up, as far as it was recorded (``TapNode.operands``). Rows are joined by their labels."""
    router: SideRows | None = None
    """Router logits of the layer (``TapNode.router``), rows × experts."""
    top_k: int | None = None
    """Experts per token; None when it is not known, then it is found from the rows that differ."""
    shards: tuple[int, ...] = ()
    """Numbers of pieces, in order and equally long, that ranks hold of the channels, on either side."""
    selection: Selection | None = None
    """How experts are chosen, where it is more than the largest logits."""
    head_size: int | None = None
    """Channels per head; None when it is not known, then common sizes are tried. Only for taps that hold heads."""
    ranks: int = 1
    """Largest number of ranks whose partial sums make the value, on either side."""
    reduction_length: int | None = None
    """Terms of the longest sum behind one element; None when it is not known."""
    look: FirstLook | None = None
    """What a pass over the values has found already; None where there was none."""
    encoded: Mask | None = None
    """Rows that an encoder of images or sound made, and no table of embeddings. Shape ``(rows,)``; None for none."""


def join_rows(first: RowLabels, second: RowLabels) -> tuple[Integer, Integer]:
    """Indices of the rows of the tokens that both have, in the order of ``first``.

    Rows without identity are joined by number, and only where both have as many.
    """
    if not first.known or not second.known:
        count = len(first) if len(first) == len(second) else 0
        return np.arange(count, dtype=np.int64), np.arange(count, dtype=np.int64)
    left, right = first.keys, second.keys
    if first is second or np.array_equal(left, right):
        same = np.arange(len(left), dtype=np.int64)
        return same, same
    _, at, other = np.intersect1d(left, right, return_indices=True)
    order = np.argsort(at, kind="stable")
    return at[order].astype(np.int64), other[order].astype(np.int64)


@functools.lru_cache(1)
def has_whole_prefix(labels: RowLabels) -> Mask:
    """Rows whose earlier tokens, from position 0 on, are rows as well. Shape ``(rows,)``, read-only."""
    order = np.lexsort((labels.position, labels.sequence))
    sequence, position = labels.sequence[order], labels.position[order]
    start = np.searchsorted(sequence, sequence, side="left")
    found = np.zeros(len(labels), np.bool_)
    found[order] = np.arange(len(order)) - start == position
    found.flags.writeable = False
    return found


@functools.lru_cache(1)
def groups_of(labels: RowLabels, requests: int = 16) -> Mapping[str, Mask]:
    """Groups of rows that bugs affect alone: name to mask, only those with rows inside and outside.

    Decode, the last token, the last of a prefill, the first token, the first of each later chunk, positions from a
    power of four on, and each of at most ``requests`` sequences.
    """
    if not labels.known or not len(labels):
        return {}
    sequence, position = labels.sequence, labels.position
    numbers, inverse = np.unique(sequence, return_inverse=True)
    inverse = inverse.reshape(-1)
    last = np.full(len(numbers), -1, np.int64)
    np.maximum.at(last, inverse, position)
    prefilled = np.full(len(numbers), -1, np.int64)
    np.maximum.at(prefilled, inverse[~labels.decode], position[~labels.decode])
    groups = {
        "decode": labels.decode,
        "last token": position == last[inverse],
        "last token of the prefill": (position == prefilled[inverse]) & labels.decode.any(),
        "first token": position == 0,
    }
    if labels.border is not None:
        groups["first token of a later chunk"] = labels.border
    groups |= {f"positions from {start} on": position >= start for start in POSITION_RANGES}
    if 1 < len(numbers) <= requests:
        groups |= {f"sequence {int(number)}": sequence == number for number in numbers}
    return {name: mask for name, mask in groups.items() if mask.any() and not mask.all()}


class Extent(Struct, frozen=True):
    """The rows whose error is beyond what inputs and rounding explain: the group of rows that they are, where they are
    one, else the positions they lie at."""

    rows: int
    of: int
    """Rows that were compared."""
    group: str = ""
    """``decode``, ``last token``, ...: what they have in common; ``all``; empty where they are no group."""
    positions: tuple[int, int] | None = None
    """Lowest and highest position, where positions are known."""
    sequences: int = 0
    """Sequences that have such rows."""


def extent_of(labels: RowLabels, beyond: Mask, compared: Mask) -> Extent | None:
    """None where no single row is beyond: a small factor of all rows, for example."""
    found = beyond & compared
    rows, of = int(found.sum()), int(compared.sum())
    if not rows:
        return None
    if not labels.known:
        return Extent(rows, of, "all" if rows >= ALL * of else "")
    position = labels.position[found]
    place = (int(position.min()), int(position.max()))
    sequences = len(distinct(labels.sequence[found]))
    return Extent(rows, of, _group(labels, found, compared), place, sequences)


def _group(labels: RowLabels, found: Mask, compared: Mask) -> str:
    if found.sum() >= ALL * compared.sum():
        return "all"
    groups = {**groups_of(labels), **({"prefill": ~labels.decode} if labels.decode.any() else {})}
    best, most = "", 0.0
    for name, mask in groups.items():
        inside = int((found & mask).sum())
        precise, complete = inside / int(found.sum()), inside / max(int((mask & compared).sum()), 1)
        outside = int((found & ~mask).sum()) / max(int((~mask & compared).sum()), 1)
        # Of a group that has nearly all rows anyhow, most of what is beyond lies in it.
        if precise >= PRECISE and complete >= COMPLETE and 2 * outside <= complete and precise + complete > most:
            best, most = name, precise + complete
    return best

"""Rows that were sorted by expert: where they come from, and the shapes they have in token order.

Mixture-of-experts layers send each token to several experts and sort the (token, choice) pairs by expert, so that
each expert sees its rows together. Two declarations after ``#`` in dims say how the rows of ``t`` lie:

- ``expert_order:=topk_ids`` (or ``topk_ids/128``): sorted by expert, pairs of one expert in token order. ``topk_ids``
  is the name of a tensor of shape ``(tokens, choices)`` recorded on the same rank in the same step with the same
  tags; 128 the number of experts, needed when ``t`` is split over an expert-parallel axis: each rank then has the
  pairs of its own experts, an equal, consecutive range.
- ``permuted:=pairs`` (or ``pairs/8``): row i is pair ``pairs[i]``, that is choice ``pairs[i] % 8`` of token
  ``pairs[i] // 8``. Every pair must be there once: with rows that pad, record the top-k ids instead.

Either gives a tensor with the dimensions ``t choice ...`` (without ``choice`` when a token has one). Pairs that a
rank does not have are zero there, so an axis that splits ``t`` becomes one to sum over. ``comparator.align.aligned``
reads the other tensor and moves the rows.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import PairError
from comparator.match.entries import Entries, Entry
from tensortap.dims import TOKEN, Dimension, Dims, DimsError, Modifier, RowOrder

CHOICE = "choice"
"""Name of the dimension that counts the experts of a token."""

_Key = tuple[int | None, int, tuple[tuple[str, str], ...]]


class Companions:
    """Finds the tensor that says how the rows of another lie."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._index: dict[str, dict[_Key, Entry]] = {}

    def of(self, entry: Entry, name: str) -> Entry:
        """The entry called ``name`` beside ``entry``; raises PairError when there is none."""
        if name not in self._index:
            self._index[name] = {_key(one): one for one in self._entries.named(name) if one.is_tensor}
        found = self._index[name].get(_key(entry))
        if found is None:
            raise PairError(
                f"the dims of {entry.name} name {name!r}, which rank {entry.rank} did not record in step "
                f"{entry.step} with the same tags",
                hint=f"record {name!r} beside it",
                name="companion-not-recorded",
            )
        return found


def _key(entry: Entry) -> _Key:
    tags = tuple(sorted((key, str(value)) for key, value in entry.tags.items()))
    return entry.step, entry.rank, tags


class TokenOrder(Struct, frozen=True):
    """How the rows of every rank of a bundle are brought to token order."""

    order: RowOrder
    recorded: Dims
    """The dims of what was recorded."""
    axes: tuple[str, ...]
    """Parallel axes over which the experts are split."""

    def shape(self, entry: Entry, companion: Entry) -> tuple[int, ...]:
        """The shape in token order, ``(tokens, choices, ...)``; raises DimsError when the dims do not fit."""
        self.recorded.check_shape(entry.shape)
        return ordered_shape(self.order, entry.shape, companion.shape)


def ordered_shape(order: RowOrder, shape: tuple[int, ...], companion: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in token order of a tensor of ``shape`` whose rows ``companion`` describes."""
    rest = shape[1:]
    if order.kind == "experts":
        return (*companion[:2], *rest)
    choices = order.count or 1
    tokens = (companion[0] if companion else 0) // choices
    return (tokens, *((choices,) if choices > 1 else ()), *rest)


def in_token_order(dims: Dims) -> tuple[TokenOrder, Dims]:
    """What to do with the rows, and the dims that hold afterwards; raises DimsError unless ``t`` comes first."""
    order = dims.row_order
    assert order is not None
    first = dims.dimensions[0]
    if first.names != (TOKEN,):
        raise DimsError(f"rows in another order are those of a first dimension t, which dims {dims.text!r} do not have")
    axes = tuple(modifier.axis for modifier in first.modifiers)
    summed = tuple(Modifier(axis, partial=True) for axis in axes)
    several = order.kind == "experts" or (order.count or 1) > 1
    choice = (Dimension((CHOICE,)),) if several else ()
    changed = replace(dims, dimensions=(Dimension((TOKEN,), summed), *choice, *dims.dimensions[1:]), row_order=None)
    return TokenOrder(order, dims, axes), changed

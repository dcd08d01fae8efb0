"""What the arguments of a Transformers model's ``forward`` are: its shape, its mask, the cache and the call."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.adapters.framework_values import quietly

_CACHE_NAMES = ("past_key_values", "cache", "cache_params")
UNKNOWN_LENGTH = -1
"""Of a cache of states of a recurrence alone, which is not empty: it does not know how many tokens it has seen."""
PAST_LENGTH = "past_length"
"""The name under which the length of a cache comes out of compiled code, which cannot carry the cache."""
_CALLS_REMEMBERED = 256


def batch_shape(batch: Mapping[str, Any]) -> tuple[int, int] | None:
    """(batch, sequence) of the pass; None where the arguments have no such dimensions."""
    for name in ("input_ids", "inputs_embeds"):
        shape = getattr(batch.get(name), "shape", None)
        if shape is not None and len(shape) >= 2:
            return int(shape[0]), int(shape[1])
    return None


def attention_mask(batch: Mapping[str, Any]) -> Any:
    """The mask of full attention, 2-D or per query. ``generate`` gives one for each kind of layer, as a mapping, where
    the cache is static."""
    mask = batch.get("attention_mask")
    return mask.get("full_attention") if isinstance(mask, Mapping) else mask


def cache_of(batch: Mapping[str, Any]) -> Any:
    """The cache that the pass goes on filling, None where there is none."""
    return next((batch[name] for name in _CACHE_NAMES if batch.get(name) is not None), None)


def past_length(batch: Mapping[str, Any]) -> Any:
    """Tokens in the cache: an integer, or of a static cache a tensor without dimensions, which is on the device.

    ``UNKNOWN_LENGTH`` where the cache does not count.
    """
    cache = cache_of(batch)
    length = getattr(cache, "get_seq_length", None)
    if length is None:
        return batch.get(PAST_LENGTH, 0)
    try:
        tokens = length()
    except ValueError:  # a cache of states alone
        return UNKNOWN_LENGTH if cache.has_previous_state() else 0
    if hasattr(tokens, "detach"):
        return tokens
    return int(tokens) or _of_other_layers(cache)


def _of_other_layers(cache: Any) -> int:
    """Tokens in the layers of a cache behind the first, which stays empty where the model holds the state of that layer
    itself, as RecurrentGemma does; 0 where none has any."""
    lengths = [quietly(layer.get_seq_length) for layer in getattr(cache, "layers", ())[1:]]
    return max((length for length in lengths if isinstance(length, int)), default=0)


@dataclass
class _Call:
    number: int
    batch: int
    end: int
    """Tokens in the cache after its last pass."""
    fills: bool = True
    """Whether its pass without a cache may have made one."""
    counts: npt.NDArray[np.int64] | None = None
    """Tokens of each sequence so far, padding left out; shape ``(batch,)``."""


class Calls:
    """Numbers the calls of ``generate``: passes belong together while they fill the same cache.

    ``key`` is asked when a pass begins, ``number`` in the order of passes, when it is known how long the cache was.
    """

    def __init__(self) -> None:
        self._new_key = itertools.count().__next__
        self._new_number = itertools.count().__next__
        self._keys: dict[int, tuple[weakref.ref[Any], int]] = {}
        """By the identity of caches."""
        self._calls: deque[tuple[int | None, _Call]] = deque(maxlen=_CALLS_REMEMBERED)
        """By key, the latest last."""

    def key(self, cache: Any) -> int | None:
        """What tells the cache from others; None where there is none."""
        if cache is None:
            return None
        known = self._keys.get(id(cache))
        if known is not None and known[0]() is cache:
            return known[1]
        identity, key = id(cache), self._new_key()
        self._keys[identity] = (weakref.ref(cache, lambda _: self._keys.pop(identity, None)), key)
        return key

    def number(self, key: int | None, past: int, shape: tuple[int, int], *, fills: bool = True) -> int:
        """The number of the call that a pass of ``shape`` belongs to; a cache that was empty begins a new one.

        ``fills``: a pass without a cache may make one, with which the next pass goes on.
        """
        call = self._continued(key, past, shape[0]) if past > 0 else None
        if call is None:
            call = _Call(self._new_number(), shape[0], 0, fills)
            self._calls.append((key, call))
        call.end = past + shape[1]
        return call.number

    def standing(self, key: int | None, batch: int) -> tuple[int, npt.NDArray[np.int64] | None]:
        """Tokens in a cache that does not count them, and of each sequence, by the passes that filled it."""
        found = next((call for known, call in reversed(self._calls) if known == key), None)
        found = found or next((call for known, call in reversed(self._calls) if _made(known, call, batch)), None)
        return (0, None) if found is None else (found.end, found.counts)

    def note(self, number: int, counts: npt.NDArray[np.int64]) -> None:
        """How many tokens each sequence of a call has after its last pass."""
        for _, call in reversed(self._calls):
            if call.number == number:
                call.counts = counts
                return

    def _continued(self, key: int | None, past: int, batch: int) -> _Call | None:
        latest = reversed(self._calls)
        if key is None:
            # In compiled code nobody knows the cache: of the call that stands there.
            return next((call for _, call in latest if (call.batch, call.end) == (batch, past)), None)
        found = next((call for known, call in latest if known == key), None)
        if found is None:
            # The first pass is often called without a cache, and makes it.
            made = (call for known, call in reversed(self._calls) if _made(known, call, batch) and call.end == past)
            found = next(made, None)
            if found is not None:
                self._calls.append((key, found))
        return found


def _made(known: int | None, call: _Call, batch: int) -> bool:
    """Whether a call was a pass without a cache that may have made one for so many sequences."""
    return known is None and call.fills and call.batch == batch

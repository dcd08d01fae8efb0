"""Transformers: the keyword arguments of a model's ``forward`` as a token layout.

``dumper.step(batch)`` takes them as a mapping: ``input_ids`` or ``inputs_embeds``, and whichever of
``attention_mask``, ``position_ids``, ``past_key_values``, ``cache_position``, ``cu_seq_lens_q``, ``labels``
there are. A token's position counts the tokens of its sequence, padding on either side left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dumper.adapters.framework_values import HostCopies, installed_versions
from dumper.adapters.protocol import Parallel, PendingLayout
from dumper.layout import PADDING_ROW, SequenceSpan, TokenLayout

Array = npt.NDArray[np.int64]

_COPIED = ("input_ids", "attention_mask", "position_ids", "cache_position", "cu_seq_lens_q")


class TransformersAdapter:
    """Batches of Hugging Face models; ranks are torch.distributed's."""

    name = "transformers"
    complete_at_start = True

    def __init__(self) -> None:
        self._calls = _Calls()

    def rank(self) -> tuple[int, int] | None:
        return None

    def parallel(self) -> Parallel:
        return {}

    def versions(self) -> dict[str, str]:
        return installed_versions("transformers", "torch", "accelerate")

    def accepts(self, batch: object) -> bool:
        return isinstance(batch, Mapping) and ("input_ids" in batch or "inputs_embeds" in batch)

    def read_batch(self, batch: object) -> TokenLayout | PendingLayout | None:
        """None for a batch without a batch and a sequence dimension.

        Raises ValueError when the arguments contradict each other.
        """
        assert isinstance(batch, Mapping)
        shape = _shape(batch)
        if shape is None:
            return None
        past = _past_length(batch.get("past_key_values"))
        call = self._calls.number(batch.get("past_key_values"), past)
        training = batch.get("labels") is not None
        tensors = {name: batch.get(name) for name in _COPIED}
        mask = tensors["attention_mask"]
        if mask is not None and len(getattr(mask, "shape", ())) != 2:
            del tensors["attention_mask"]  # A mask per query says nothing of padding that can be relied on.
        copies = HostCopies(tensors)

        def finish() -> TokenLayout:
            return build_layout(ForwardArguments(shape, call, past, training, **copies.wait()))

        return PendingLayout(finish) if copies.pending else finish()


@dataclass(frozen=True)
class ForwardArguments:
    """What a forward pass was given, on the host; arrays are flat."""

    shape: tuple[int, int]
    """(batch, sequence)."""
    call: int
    """Number of the generation, or of the single pass without a cache, that this pass belongs to."""
    past: int
    """Tokens in the cache before this pass, padding included."""
    training: bool = False
    input_ids: Array | None = None
    attention_mask: Array | None = None
    """Of the cached tokens and of this pass, per sequence; 0 is padding."""
    position_ids: Array | None = None
    cache_position: Array | None = None
    cu_seq_lens_q: Array | None = None
    """Where the sequences of a packed batch begin, and where the last one ends."""


def build_layout(given: ForwardArguments) -> TokenLayout:
    """The token layout of the pass. Raises ValueError when the arguments contradict each other."""
    batch, length = given.shape
    starts = _packed_starts(given)
    if starts is not None:
        sequence, position = _packed_rows(starts, batch * length)
        names = [f"{given.call}-{index}" for index in range(len(starts))]
    else:
        sequence, position = _batch_rows(given)
        names = [f"{given.call}-{index}" for index in range(batch)]
    mode = "train" if given.training else "decode" if length == 1 and given.past > 0 else "prefill"
    return TokenLayout(
        forward_mode=mode,
        sequences=tuple(_span(name, position[sequence == index]) for index, name in enumerate(names)),
        rows=batch * length,
        token_ids=given.input_ids,
        row_sequence=sequence,
        row_position=position,
        batch_shape=(batch, length),
    )


def _span(name: str, positions: Array) -> SequenceSpan:
    return SequenceSpan(name, int(positions[0]) if len(positions) else 0, len(positions))


def _batch_rows(given: ForwardArguments) -> tuple[npt.NDArray[np.int32], Array]:
    """One sequence per row of the batch; padding as the attention mask says."""
    batch, length = given.shape
    sequence = np.repeat(np.arange(batch, dtype=np.int32), length)
    if given.attention_mask is not None:
        mask = given.attention_mask.reshape(batch, -1) != 0
        columns = mask.shape[1]
        if columns < length:
            raise ValueError(f"an attention mask of {columns} columns for {length} tokens a sequence")
        # A mask of a static cache is wider than what there is, one of this pass alone does not cover the past.
        end = min(columns, given.past + length)
        uncovered = given.past + length - end
        position = (mask.cumsum(axis=1) - 1)[:, end - length : end] + uncovered
        real = mask[:, end - length : end]
        return (
            np.where(real, sequence.reshape(batch, length), PADDING_ROW).astype(np.int32).reshape(-1),
            np.where(real, position, 0).astype(np.int64).reshape(-1),
        )
    if given.position_ids is not None and given.position_ids.size in (length, batch * length):
        position = np.broadcast_to(given.position_ids.reshape(-1, length), (batch, length))
    elif given.cache_position is not None and given.cache_position.size == length:
        position = np.broadcast_to(given.cache_position, (batch, length))
    else:
        position = np.broadcast_to(np.arange(given.past, given.past + length), (batch, length))
    return sequence, position.astype(np.int64).reshape(-1)


def _packed_starts(given: ForwardArguments) -> Array | None:
    """Rows at which the sequences of a packed batch begin, None for an ordinary batch."""
    batch, length = given.shape
    if batch != 1:
        return None
    if given.cu_seq_lens_q is not None:
        return given.cu_seq_lens_q[:-1]
    positions = given.position_ids
    if given.attention_mask is not None or positions is None or positions.size != length or given.past:
        return None
    starts = np.flatnonzero(positions == 0)
    steps = np.diff(positions)
    packed = len(starts) > 1 and starts[0] == 0 and bool(np.all((steps == 1) | (positions[1:] == 0)))
    return starts if packed else None


def _packed_rows(starts: Array, rows: int) -> tuple[npt.NDArray[np.int32], Array]:
    sequence = (np.searchsorted(starts, np.arange(rows), side="right") - 1).astype(np.int32)
    return sequence, np.arange(rows, dtype=np.int64) - starts[sequence]


def _shape(batch: Mapping[str, Any]) -> tuple[int, int] | None:
    for name in ("input_ids", "inputs_embeds"):
        shape = getattr(batch.get(name), "shape", None)
        if shape is not None and len(shape) >= 2:
            return int(shape[0]), int(shape[1])
    return None


def _past_length(cache: Any) -> int:
    length = getattr(cache, "get_seq_length", None)
    return 0 if length is None else int(length())


class _Calls:
    """Numbers the calls of ``generate``: passes belong together while they fill the same cache."""

    def __init__(self) -> None:
        self._next = 0
        self._numbers: dict[int, tuple[weakref.ref[Any], int]] = {}

    def number(self, cache: Any, past: int) -> int:
        """The number of the call that this pass belongs to; a cache that is empty begins a new one."""
        known = self._numbers.get(id(cache))
        if past > 0 and known is not None and known[0]() is cache:
            return known[1]
        number = self._next
        self._next += 1
        if cache is not None:
            key = id(cache)
            self._numbers[key] = (weakref.ref(cache, lambda _: self._numbers.pop(key, None)), number)
        return number

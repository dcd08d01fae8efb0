"""Transformers: the keyword arguments of a model's ``forward`` as a token layout.

``dumper.step(batch)`` takes them as a mapping: ``input_ids`` or ``inputs_embeds``, and whichever of
``attention_mask``, ``position_ids``, ``past_key_values`` (since 5.24 ``cache``), ``cache_position``, ``cu_seq_lens_q``,
``labels`` there are; others are left aside. A token's position counts the tokens of its sequence, padding on either
side left out.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from dumper.adapters.framework_values import HostCopies, installed_versions
from dumper.adapters.protocol import Parallel, PendingLayout
from dumper.adapters.transformers_rows import (
    Array,
    ForwardArguments,
    causal_rows,
    covered,
    ends,
    goes_on,
    is_packed,
    rows_of,
)
from dumper.layout import SequenceSpan, TokenLayout

_COPIED = ("input_ids", "attention_mask", "position_ids", "cache_position", "cu_seq_lens_q")
_CACHE_NAMES = ("past_key_values", "cache")


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

        Raises ValueError when the arguments contradict each other, or when they do not tell which rows are padding.
        """
        assert isinstance(batch, Mapping)
        shape = _shape(batch)
        if shape is None:
            return None
        cache = _cache(batch)
        past = _past_length(cache)
        call = self._calls.number(cache, past)
        training = batch.get("labels") is not None
        tensors = {name: batch.get(name) for name in _COPIED}
        mask = tensors.pop("attention_mask")
        if len(getattr(mask, "shape", ())) == 4 and hasattr(mask, "detach"):
            names = ("causal_real", "causal_past", "plain")
            tensors.update(zip(names, causal_rows(mask, past, shape[1]), strict=True))
        elif len(getattr(mask, "shape", ())) == 2:
            tensors["attention_mask"] = mask
        copies = HostCopies(tensors)

        def finish() -> TokenLayout:
            arrays = copies.wait()
            plain = arrays.pop("plain", None)
            if plain is not None and not plain.all():
                raise ValueError(
                    "an attention mask per query that is not causal does not tell which rows are padding; "
                    "give the 2-D mask, or step(layout=...)"
                )
            return build_layout(ForwardArguments(shape, call, past, training, **arrays))

        return PendingLayout(finish) if copies.pending else finish()

    def last_tokens(self, value: Any, batch: Mapping[str, Any]) -> Any:
        """Of ``value``, shape (batch, sequence, ...), the rows of each sequence's last token, shape (sequences, ...).

        ``value`` may hold only the last columns of the pass, as logits do. To be called after the pass has filled its
        cache. Sequences whose last token ``value`` does not hold are left out.
        """
        shape = _shape(batch)
        if shape is None or len(value.shape) < 2 or value.shape[0] != shape[0]:
            raise ValueError(f"last_tokens: {list(value.shape)} is not (batch, sequence, ...) of this pass")
        kept = min(int(value.shape[1]), shape[1])
        return value[:, -kept:][_last_rows(batch, shape)[:, -kept:].to(value.device)]


def build_layout(given: ForwardArguments) -> TokenLayout:
    """The token layout of the pass. Raises ValueError when the arguments contradict each other."""
    batch, length = given.shape
    rows = rows_of(given)
    mode = "train" if given.training else "decode" if length == 1 and given.past > 0 else "prefill"
    return TokenLayout(
        forward_mode=mode,
        sequences=tuple(
            _span(f"{given.call}-{index}", rows.position[rows.sequence == index]) for index in range(rows.sequences)
        ),
        rows=batch * length,
        token_ids=given.input_ids,
        row_sequence=rows.sequence,
        row_position=rows.position,
        batch_shape=(batch, length),
    )


def _span(name: str, positions: Array) -> SequenceSpan:
    return SequenceSpan(name, int(positions[0]) if len(positions) else 0, len(positions))


def _last_rows(batch: Mapping[str, Any], shape: tuple[int, int]) -> Any:
    """Per row of the pass whether it is the last token of its sequence: a bool tensor of shape (batch, sequence)."""
    import torch

    length = shape[1]
    past = max(_past_length(_cache(batch)) - length, 0)
    mask, position, packed = (batch.get(name) for name in ("attention_mask", "position_ids", "cu_seq_lens_q"))
    like = next(item for name in ("input_ids", "inputs_embeds") if (item := batch.get(name)) is not None)
    real = torch.ones(shape, dtype=torch.bool, device=like.device)
    if packed is not None and shape[0] == 1:
        last = real & False
        last[0, (packed[1:] - 1)[packed[1:] > packed[:-1]].long()] = True
        return last
    if mask is not None and mask.dim() == 2:
        real = covered(mask != 0, past, length)[0][:, -length:]
    elif mask is not None and mask.dim() == 4:
        real = causal_rows(mask, past, length)[0]
    follows = real & False
    follows[:, 1:] = real[:, 1:] & real[:, :-1]
    if position is not None and position.numel() in (length, shape[0] * length) and not past:
        position = position.reshape(-1, length).expand(shape).to(real.device)
        if is_packed(real, position):
            follows = goes_on(real, position)
    return ends(real, follows)


def _shape(batch: Mapping[str, Any]) -> tuple[int, int] | None:
    for name in ("input_ids", "inputs_embeds"):
        shape = getattr(batch.get(name), "shape", None)
        if shape is not None and len(shape) >= 2:
            return int(shape[0]), int(shape[1])
    return None


def _cache(batch: Mapping[str, Any]) -> Any:
    return next((batch[name] for name in _CACHE_NAMES if batch.get(name) is not None), None)


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

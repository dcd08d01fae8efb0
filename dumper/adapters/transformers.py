"""Transformers: the keyword arguments of a model's ``forward`` as a token layout.

``dumper.step(batch)`` takes them as a mapping: ``input_ids`` or ``inputs_embeds``, and whichever of
``attention_mask``, ``position_ids``, ``past_key_values`` (since 5.24 ``cache``; of recurrent models ``cache_params``),
``cache_position``, ``cu_seq_lens_q``,
``labels`` there are; others are left aside. A token's position counts the tokens of its sequence, padding on either
side left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dumper.adapters.framework_values import installed_versions, layout_of
from dumper.adapters.protocol import Parallel, PendingLayout
from dumper.adapters.transformers_batch import (
    UNKNOWN_LENGTH,
    Calls,
    attention_mask,
    batch_shape,
    cache_of,
    past_length,
)
from dumper.adapters.transformers_rows import Array, ForwardArguments, causal_rows, rows_of
from dumper.layout import SequenceSpan, TokenLayout

_COPIED = ("input_ids", "position_ids", "cache_position", "cu_seq_lens_q")


class TransformersAdapter:
    """Batches of Hugging Face models; ranks are torch.distributed's."""

    name = "transformers"
    complete_at_start = True

    def __init__(self) -> None:
        self._calls = Calls()

    def rank(self) -> tuple[int, int] | None:
        return None

    def parallel(self) -> Parallel:
        return {}

    def versions(self) -> dict[str, str]:
        return installed_versions("transformers", "torch", "accelerate")

    def accepts(self, batch: object) -> bool:
        return isinstance(batch, Mapping) and ("input_ids" in batch or "inputs_embeds" in batch)

    def model_facts(self, batch: object) -> dict[str, str]:
        """Of the model itself, where ``self`` is among the arguments, as it is in a tap's ``$arguments``."""
        from dumper.adapters.model_facts import facts_of_model

        return facts_of_model(batch.get("self")) if isinstance(batch, Mapping) else {}

    def read_batch(self, batch: object) -> TokenLayout | PendingLayout | None:
        """None for a batch without a batch and a sequence dimension.

        Raises ValueError when the arguments contradict each other, or when they do not tell which rows are padding.
        """
        assert isinstance(batch, Mapping)
        shape = batch_shape(batch)
        if shape is None:
            return None
        past = past_length(batch)
        cache = self._calls.key(cache_of(batch))
        training = batch.get("labels") is not None
        fills = not training and batch.get("use_cache") is not False
        tensors = {name: batch.get(name) for name in _COPIED}
        tensors["past"] = past if hasattr(past, "detach") else [past]
        mask = attention_mask(batch)
        if len(getattr(mask, "shape", ())) == 4 and hasattr(mask, "detach"):
            names = ("causal_real", "causal_past", "plain")
            tensors.update(zip(names, causal_rows(mask, past, shape), strict=True))
        elif len(getattr(mask, "shape", ())) == 2:
            tensors["attention_mask"] = mask

        def build(arrays: dict[str, Array]) -> TokenLayout:
            plain = arrays.pop("plain", None)
            if plain is not None and not plain.all():
                raise ValueError(
                    "an attention mask per query that is not causal does not tell which rows are padding; "
                    "give the 2-D mask, or step(layout=...)"
                )
            past = int(arrays.pop("past")[0]) if "past" in arrays else 0
            if past == UNKNOWN_LENGTH:
                past, counts = self._calls.standing(cache, shape[0])
                if counts is not None and "attention_mask" not in arrays and "position_ids" not in arrays:
                    arrays |= {"causal_real": np.ones(shape, np.int64), "causal_past": counts}
            call = self._calls.number(cache, past, shape, fills=fills)
            layout = build_layout(ForwardArguments(shape, call, past, training, **arrays))
            if len(layout.sequences) == shape[0]:
                self._calls.note(call, np.array([span.start + span.count for span in layout.sequences], np.int64))
            return layout

        return layout_of(tensors, build)

    def last_tokens(self, value: Any, batch: Mapping[str, Any]) -> Any:
        """Of ``value``, shape (batch, sequence, ...), the rows of each sequence's last token, shape (sequences, ...).

        ``value`` may hold only the last columns of the pass, as logits do. To be called after the pass has filled its
        cache. Sequences whose last token ``value`` does not hold are left out on the CPU. On a device, which is not
        waited for, and in compiled code they come with the row next to it.
        """
        from dumper.adapters.transformers_last import indices_of_last, rows_of_last

        shape = batch_shape(batch)
        if shape is None or len(value.shape) < 2 or value.shape[0] != shape[0]:
            raise ValueError(f"last_tokens: {list(value.shape)} is not (batch, sequence, ...) of this pass")
        kept = min(int(value.shape[1]), shape[1])
        columns = value[:, -kept:]
        if _may_wait(value):
            return columns[rows_of_last(batch, shape)[:, -kept:].to(value.device)]
        sequence, index = indices_of_last(batch, shape, value.device)
        return columns[sequence, (index - (shape[1] - kept)).clamp(min=0)]


def _may_wait(value: Any) -> bool:
    """Whether what is computed may depend on the values of tensors."""
    import torch

    return value.device.type == "cpu" and not torch.compiler.is_compiling()


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

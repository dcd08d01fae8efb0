"""Which rows of a Transformers batch are the last tokens of their sequences, worked out where the tensors are.

Twice: exactly, where the values of tensors may decide how many rows there are, and of fixed shape, one for each
sequence of the batch, where nothing may wait for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dumper.adapters.transformers_batch import UNKNOWN_LENGTH, attention_mask, past_length
from dumper.adapters.transformers_rows import causal_rows, ends, goes_on, is_packed


def rows_of_last(batch: Mapping[str, Any], shape: tuple[int, int]) -> Any:
    """Per row of the pass whether it is the last token of its sequence: bool, shape (batch, sequence)."""
    length = shape[1]
    real = _real_rows(batch, shape)
    packed, position = batch.get("cu_seq_lens_q"), batch.get("position_ids")
    if packed is not None and shape[0] == 1:
        last = real & False
        last[0, (packed[1:] - 1)[packed[1:] > packed[:-1]].long()] = True
        return last
    follows = real & False
    follows[:, 1:] = real[:, 1:] & real[:, :-1]
    if position is not None and position.numel() in (length, shape[0] * length) and not _past_before(batch, length):
        position = position.reshape(-1, length).expand(shape).to(real.device)
        if is_packed(real, position):
            follows = goes_on(real, position)
    return ends(real, follows)


def indices_of_last(
    batch: Mapping[str, Any], shape: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per sequence its row of the batch and its last token's column, int64, shape (sequences,), on ``device``.

    Packed sequences are told from their cumulative lengths alone.
    """
    packed = batch.get("cu_seq_lens_q")
    if packed is not None and shape[0] == 1:
        last = (packed[1:].to(device).long() - 1).clamp(min=0)
        return torch.zeros_like(last), last
    sequence = torch.arange(shape[0], device=device)
    if shape[1] == 1 or attention_mask(batch) is None:
        return sequence, torch.full_like(sequence, shape[1] - 1)
    number = torch.arange(1, shape[1] + 1, device=device)
    return sequence, (_real_rows(batch, shape).to(device) * number).argmax(1)


def _past_before(batch: Mapping[str, Any], length: int) -> Any:
    """Tokens in the cache before the pass, which has filled it."""
    past = past_length(batch)
    if isinstance(past, int) and past == UNKNOWN_LENGTH:
        # The cache does not count; a mask of its own length tells.
        mask = attention_mask(batch)
        return max(mask.shape[1] - length, 0) if mask is not None and mask.dim() == 2 else 0
    past = past - length
    return past.clamp(min=0) if isinstance(past, torch.Tensor) else max(past, 0)


def _real_rows(batch: Mapping[str, Any], shape: tuple[int, int]) -> Any:
    """Per row whether it is a token, and no padding: bool, shape (batch, sequence)."""
    mask, length = attention_mask(batch), shape[1]
    if mask is None or mask.dim() not in (2, 4):
        like = batch["input_ids"] if batch.get("input_ids") is not None else batch["inputs_embeds"]
        return torch.ones(shape, dtype=torch.bool, device=like.device)
    past = _past_before(batch, length)
    if mask.dim() == 4:
        return causal_rows(mask, past, shape)[0]
    columns = mask.shape[1]
    if columns < length:
        raise ValueError(f"an attention mask of {columns} columns for {length} tokens a sequence")
    column = torch.arange(length, device=mask.device)
    if isinstance(past, torch.Tensor):
        return mask.index_select(1, column + (past.to(mask.device) + length).clamp(max=columns) - length) != 0
    end = min(columns, past + length)
    return mask[:, end - length : end] != 0

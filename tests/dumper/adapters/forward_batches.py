"""ForwardBatch objects as SGLang hands them to a model, and what it does to them around a pass.

Two generations: ``old`` (0.5.9: no request ids, marks set by ``setattr``, counts rounded up in place) and
``new`` (0.5.23: request ids, declared marks, the padded counts in a field of their own, positions and lengths
put back after the pass). Only what an adapter can see is imitated.
"""

from __future__ import annotations

from enum import IntEnum, auto
from types import SimpleNamespace
from typing import Any

import torch


class ForwardMode(IntEnum):
    EXTEND = auto()
    DECODE = auto()
    MIXED = auto()
    IDLE = auto()
    TARGET_VERIFY = auto()
    DRAFT_EXTEND = auto()
    DRAFT_EXTEND_V2 = auto()
    SPLIT_PREFILL = auto()
    DLLM_EXTEND = auto()


class PaddingMode(IntEnum):
    MAX_LEN = auto()
    SUM_LEN = auto()

    def is_max_len(self) -> bool:
        return self is PaddingMode.MAX_LEN


Sequence = tuple[str, int, list[int]]
"""Request id, tokens already cached, tokens of this pass."""


def forward_batch(mode: ForwardMode, sequences: list[Sequence], release: str = "new", **more: Any) -> Any:
    """An unpadded batch. ``seq_lens`` are total lengths, this pass included."""
    tokens = [token for _, _, ids in sequences for token in ids]
    positions = [start + offset for _, start, ids in sequences for offset in range(len(ids))]
    lengths = [start + len(ids) for _, start, ids in sequences]
    batch = SimpleNamespace(
        forward_mode=mode,
        batch_size=len(sequences),
        input_ids=torch.tensor(tokens, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        req_pool_indices=torch.arange(5, 5 + len(sequences)),
        seq_lens=torch.tensor(lengths, dtype=torch.int64),
        seq_lens_cpu=torch.tensor(lengths, dtype=torch.int64),
        extend_seq_lens=None,
        extend_prefix_lens=None,
        extend_seq_lens_cpu=None,
        extend_prefix_lens_cpu=None,
        spec_info=None,
        global_num_tokens_cpu=None,
        original_global_num_tokens_cpu=None,
        dp_padding_mode=None,
        is_extend_in_batch=False,
    )
    if mode not in (ForwardMode.DECODE, ForwardMode.IDLE, ForwardMode.TARGET_VERIFY):
        batch.extend_seq_lens_cpu = [len(ids) for _, _, ids in sequences]
        batch.extend_prefix_lens_cpu = [start for _, start, _ in sequences]
        batch.extend_seq_lens = torch.tensor(batch.extend_seq_lens_cpu, dtype=torch.int32)
        batch.extend_prefix_lens = torch.tensor(batch.extend_prefix_lens_cpu, dtype=torch.int32)
    if release == "new":
        batch.rids = [name for name, _, _ in sequences]
        batch._original_batch_size = None
        batch._original_forward_mode = None
        batch.global_num_tokens_padded_cpu = None
    for name, value in more.items():
        setattr(batch, name, value)
    return batch


def pad_for_data_parallel(
    batch: Any, counts: list[int], rank: int, padding: PaddingMode, attn_tp: int = 1, release: str = "new"
) -> None:
    """What ``prepare_mlp_sync_batch`` leaves behind, before the first layer runs."""
    batch.original_global_num_tokens_cpu = counts
    aligned = [-(-count // attn_tp) * attn_tp for count in counts]
    if release == "old":
        counts[:] = aligned
    rows = [max(aligned)] * len(counts) if padding.is_max_len() else aligned
    batch.dp_padding_mode = padding
    size = rows[rank]
    batch_size = batch.batch_size
    decoding = batch.forward_mode in (ForwardMode.DECODE, ForwardMode.IDLE, ForwardMode.TARGET_VERIFY)
    if release == "new" or (decoding and not (batch.is_extend_in_batch and padding.is_max_len())):
        batch._original_batch_size = batch.batch_size
    if decoding and batch.is_extend_in_batch and padding.is_max_len():
        batch._original_forward_mode = batch.forward_mode
        batch.forward_mode = ForwardMode.EXTEND
        batch.extend_seq_lens_cpu = [1] * batch_size
        batch.extend_prefix_lens_cpu = (batch.seq_lens - 1).tolist()
    elif decoding:
        batch_size = size if batch.spec_info is None else size // batch.spec_info.num_tokens_per_req
        batch.batch_size = batch_size
    batch._original_num_tokens = len(batch.positions)
    batch.input_ids = _pad(batch.input_ids, size)
    batch.positions = _pad(batch.positions, size)
    batch.req_pool_indices = _pad(batch.req_pool_indices, batch_size)
    batch.seq_lens = _pad(batch.seq_lens, batch_size, 1)
    batch.seq_lens_cpu = _pad(batch.seq_lens_cpu, batch_size, 1)
    batch.global_num_tokens_cpu = rows
    if release == "new":
        batch.global_num_tokens_padded_cpu = rows


def after_the_pass(batch: Any, release: str = "new") -> None:
    """What ``post_forward_mlp_sync_batch`` puts back: marks everywhere, tensors only in newer releases."""
    original_mode = getattr(batch, "_original_forward_mode", None)
    original_size = getattr(batch, "_original_batch_size", None)
    batch.forward_mode = batch.forward_mode if original_mode is None else original_mode
    batch.batch_size = batch.batch_size if original_size is None else original_size
    if release == "new":
        batch.positions = batch.positions[: batch._original_num_tokens]
        batch.seq_lens = batch.seq_lens[: batch.batch_size]
        batch.seq_lens_cpu = batch.seq_lens_cpu[: batch.batch_size]
        batch.req_pool_indices = batch.req_pool_indices[: batch.batch_size]


def _pad(tensor: torch.Tensor, size: int, value: int = 0) -> torch.Tensor:
    if size <= len(tensor):
        return tensor
    return torch.cat([tensor, tensor.new_full((size - len(tensor),), value)])

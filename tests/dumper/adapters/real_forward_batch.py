"""The real ForwardBatch of one SGLang release, whose sources come first on the path (forked_releases.py runs this).

It is padded by its own ``prepare_mlp_sync_batch``, put back by its own ``post_forward_mlp_sync_batch``, and read by the
adapter in both states. Only what needs a GPU, a server or process groups is replaced. Prints how many were read; any
error ends it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from transformers.models.auto import configuration_auto


class Kernels(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Compiled kernels that are named at import and never called here."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith("sgl_kernel.") else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = MagicMock(spec_set=None)
        module.__path__ = []
        module.__spec__ = spec
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


sys.meta_path.append(Kernels())
_register = configuration_auto._LazyConfigMapping.register
# Old releases register model types that newer Transformers bring themselves.
configuration_auto._LazyConfigMapping.register = lambda self, key, value, exist_ok=False: _register(
    self, key, value, True
)

from sglang.srt import server_args  # noqa: E402
from sglang.srt.distributed import parallel_state  # noqa: E402
from sglang.srt.layers import dp_attention  # noqa: E402
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode  # noqa: E402

from dumper.adapters import sglang_parallel  # noqa: E402
from dumper.adapters.sglang import SGLangAdapter  # noqa: E402
from dumper.layout import TokenLayout  # noqa: E402

Spans = Sequence[tuple[int, int]]
"""Per sequence the tokens before the pass and in it."""

CASES: tuple[tuple[ForwardMode, Spans, int, bool], ...] = (
    # Mode, sequences, tokens of the other data-parallel rank, whether any rank prefills.
    (ForwardMode.DECODE, [(3, 1), (7, 1)], 1, False),
    (ForwardMode.DECODE, [(3, 1), (7, 1)], 5, True),
    (ForwardMode.IDLE, [], 3, False),
    (ForwardMode.IDLE, [], 9, True),
    (ForwardMode.EXTEND, [(0, 3), (4, 2)], 0, True),
    (ForwardMode.EXTEND, [(0, 3), (4, 2)], 4, True),
    (ForwardMode.MIXED, [(0, 3), (4, 1)], 7, True),
)


class Anything:
    """Server arguments: all unset."""

    device = "cpu"
    dp_size = 2

    def __getattr__(self, name: str) -> None:
        return None


def stand_at(dp_rank: int, attn_tp: int) -> None:
    """Make SGLang believe that this is the first attention-TP rank of one of two data-parallel ranks."""

    def group(rank: int, size: int) -> SimpleNamespace:
        return SimpleNamespace(rank_in_group=rank, world_size=size)

    tp = group(dp_rank * attn_tp, 2 * attn_tp)
    dp_attention._ATTN_DP_RANK, dp_attention._ATTN_DP_SIZE = dp_rank, 2
    parallel_state._TP, parallel_state._PP, parallel_state._ATTN_TP = tp, group(0, 1), group(0, attn_tp)
    parallel_state._ATTN_CP = parallel_state._MOE_EP = parallel_state._MOE_DP = group(0, 1)
    parallel_state._MOE_TP = tp


def tokens_of(spans: Spans) -> list[int]:
    return [100 * index + start + offset for index, (start, count) in enumerate(spans) for offset in range(count)]


def forward_batch(mode: ForwardMode, spans: Spans, counts: list[int], prefill: bool) -> Any:
    tokens = torch.tensor(tokens_of(spans), dtype=torch.int64)
    lengths = torch.tensor([start + count for start, count in spans], dtype=torch.int64)
    batch = ForwardBatch(
        forward_mode=mode,
        batch_size=len(spans),
        input_ids=tokens,
        req_pool_indices=torch.arange(len(spans)),
        seq_lens=lengths,
        out_cache_loc=torch.zeros_like(tokens),
        seq_lens_sum=int(lengths.sum()),
    )
    batch.seq_lens_cpu = lengths.clone()
    batch.positions = torch.tensor([s + i for s, count in spans for i in range(count)], dtype=torch.int64)
    batch.lora_ids = [None] * len(spans)
    if hasattr(batch, "rids"):
        batch.rids = [f"request {index}" for index in range(len(spans))]
    if mode in (ForwardMode.EXTEND, ForwardMode.MIXED):
        batch.extend_prefix_lens_cpu = [start for start, _ in spans]
        batch.extend_seq_lens_cpu = [count for _, count in spans]
        batch.extend_prefix_lens = torch.tensor(batch.extend_prefix_lens_cpu, dtype=torch.int32)
        batch.extend_seq_lens = torch.tensor(batch.extend_seq_lens_cpu, dtype=torch.int32)
        batch.extend_num_tokens = len(tokens)
    # One list in three places, as init_new leaves it.
    batch.original_global_num_tokens_cpu = batch.global_num_tokens_cpu = counts
    batch.global_num_tokens_for_logprob_cpu = counts
    batch.global_num_tokens_gpu = torch.tensor(counts)
    batch.is_extend_in_batch = prefill
    return batch


def model_runner() -> Any:
    fill = {"get_cuda_graph_seq_len_fill_value": lambda: 1, "get_cpu_graph_seq_len_fill_value": lambda: 1}
    return SimpleNamespace(is_draft_worker=False, attn_backend=SimpleNamespace(**fill), server_args=Anything())


def check(layout: Any, batch: Any, mode: ForwardMode, spans: Spans, dp_rank: int) -> None:
    own, rows = sum(count for _, count in spans), int(batch.input_ids.shape[0])
    assert isinstance(layout, TokenLayout)
    assert layout.forward_mode == mode.name.lower(), layout
    assert [(span.start, span.count) for span in layout.sequences] == list(spans), layout
    assert (layout.rows, layout.real_rows) == (rows, own), layout
    sequence, _ = layout.row_identities()
    assert layout.token_ids is not None
    assert layout.token_ids[sequence >= 0].tolist() == tokens_of(spans), layout
    gather = layout.data_parallel
    assert gather is not None
    assert (gather.rank, gather.rows[dp_rank], gather.real_rows[dp_rank]) == (dp_rank, rows, own), gather
    assert gather.padding == ("max_len" if batch.dp_padding_mode.is_max_len() else "sum_len"), gather


def situations() -> Iterator[tuple[int, int, ForwardMode, Spans, int, bool]]:
    for attn_tp in (1, 2):
        for dp_rank in (0, 1):
            for case in CASES:
                yield attn_tp, dp_rank, *case


def without_pinning(tensor: Any) -> Any:
    """``torch.tensor`` on a machine without a device to pin memory for."""

    def unpinned(*arguments: Any, **keywords: Any) -> Any:
        keywords.pop("pin_memory", None)
        return tensor(*arguments, **keywords)

    return unpinned


def main() -> None:
    server_args._global_server_args = Anything()
    torch.tensor = without_pinning(torch.tensor)
    checked = 0
    for longest in (False, True):
        if longest:
            dp_attention.DpPaddingMode.get_dp_padding_mode = classmethod(lambda cls, *arguments: cls.MAX_LEN)
        for attn_tp, dp_rank, mode, spans, other, prefill in situations():
            stand_at(dp_rank, attn_tp)
            counts = [other, other]
            counts[dp_rank] = sum(count for _, count in spans)
            batch = forward_batch(mode, spans, counts, prefill)
            batch.prepare_mlp_sync_batch(model_runner())
            adapter = SGLangAdapter()
            check(adapter.read_batch(batch), batch, mode, spans, dp_rank)
            logits = SimpleNamespace(next_token_logits=torch.zeros(len(batch.input_ids), 3), hidden_states=None)
            batch.post_forward_mlp_sync_batch(logits)
            check(adapter.read_batch(batch), batch, mode, spans, dp_rank)
            checked += 2
    stand_at(1, 2)
    print(json.dumps({"checked": checked, "axes": sglang_parallel.parallel_axes()}))


if __name__ == "__main__":
    main()

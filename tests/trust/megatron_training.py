"""One rank of a training of a ``GPTModel`` of Megatron-core on CPUs (``testbed.ranks`` forks it)."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dumper import dumper

LENGTH, BATCH, VOCABULARY = 16, 4, 64


def prepare(packages: str, *arguments: object) -> None:
    """Imports Megatron-core, once for all ranks, and has it leave CUDA alone."""
    sys.path.insert(0, packages)
    warnings.simplefilter("ignore")
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *_: None  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment, method-assign]
    zeros = torch.zeros

    def zeros_here(*sizes: Any, **options: Any) -> torch.Tensor:
        return zeros(*sizes, **{**options, **({"device": "cpu"} if options.get("device") == "cuda" else {})})

    torch.zeros = zeros_here
    from megatron.core import tensor_parallel
    from megatron.core.models.gpt import gpt_layer_specs, gpt_model  # noqa: F401
    from megatron.core.transformer import torch_norm
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    tensor_parallel.get_cuda_rng_tracker().fork = lambda *_, **__: contextlib.nullcontext()
    torch_norm.WrappedTorchNorm.__new__ = _norm


def _norm(cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **others: Any) -> torch.nn.Module:
    """RMSNorm with sequence parallelism, which Megatron-core has in extensions for CUDA alone."""
    made = torch.nn.RMSNorm(hidden_size, eps=eps)
    made.weight.sequence_parallel = config.sequence_parallel and not getattr(config, "leave_norms_out", False)
    return made


def train(rank: int, packages: str, folder: str, run: str, layout: dict[str, int], fault: str = "") -> None:
    """Two steps of ``BATCH`` sequences. ``layout``: ``tp``, ``pp``, ``vpp``, ``ep``, ``sp``, and ``micro``, sequences
    of a micro-batch. ``fault``: what goes wrong in one place."""
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer import TransformerConfig

    at = {"tp": 1, "pp": 1, "ep": 1, "dp": 1, "micro": 1, **layout}
    size, vpp, experts = at["tp"] * at["pp"] * max(at["ep"], at["dp"]), at.get("vpp"), at.get("experts")
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{run}", rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(
        at["tp"], at["pp"], virtual_pipeline_model_parallel_size=vpp, expert_model_parallel_size=at["ep"]
    )
    parallel = {
        "tensor_model_parallel_size": at["tp"],
        "pipeline_model_parallel_size": at["pp"],
        "virtual_pipeline_model_parallel_size": vpp,
        "expert_model_parallel_size": at["ep"],
        "sequence_parallel": "sp" in at,
        "pipeline_dtype": torch.float32,
        "overlap_p2p_comm": vpp is not None,
        "batch_p2p_comm": vpp is None,
    }
    shapes = {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2}
    of_experts = {"num_moe_experts": experts, "moe_router_topk": 2, "moe_router_load_balancing_type": "none"}
    unfused = ("gradient_accumulation_fusion", "bias_dropout_fusion", "masked_softmax_fusion", "bias_activation_fusion")
    config = TransformerConfig(
        **shapes,
        **parallel,
        **(of_experts if experts else {}),
        **dict.fromkeys(unfused, False),
        ffn_hidden_size=64,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        finalize_model_grads_func=(lambda *_, **__: None) if fault == "finalize" else finalize_model_grads,
    )
    config.leave_norms_out = fault == "norms"
    chunks = [_chunk(config, chunk, vpp, experts) for chunk in range(vpp or 1)]
    for chunk in chunks:
        _same_weights(chunk, config, parallel_state)
    is_last = parallel_state.get_pipeline_model_parallel_rank() == at["pp"] - 1
    if fault == "weight" and is_last:
        chunks[-1].decoder.layers[0].mlp.linear_fc2.weight.data.mul_(1.01)
    if fault == "loss" and is_last:
        config.grad_scale_func = lambda loss: loss * 1.01
    settings = DistributedDataParallelConfig(check_for_nan_in_grad=False)
    models = [DistributedDataParallel(config, settings, chunk) for chunk in chunks]
    optimizer = torch.optim.SGD([one for chunk in chunks for one in chunk.parameters()], lr=0.1)
    dumper.configure(enable=True, dir=folder, run=run, control=False)
    for model in models:
        dumper.attach(model, "**", grad="nograd" not in at)
    for step in range(2):
        for model in models:
            model.zero_grad_buffer()
        with dumper.step():
            batches = [_micro_batches(step, at["micro"], parallel_state) for _ in models]
            get_forward_backward_func()(
                forward_step_func=_forward,
                data_iterator=batches if vpp else batches[0],
                model=models if vpp else models[0],
                num_microbatches=BATCH // at["micro"] // parallel_state.get_data_parallel_world_size(),
                seq_length=LENGTH,
                micro_batch_size=at["micro"],
                forward_only=False,
            )
            for model in models:
                dumper.dump_model(model)
            for chunk in chunks:
                for parameter in chunk.parameters():
                    parameter.grad = parameter.main_grad.clone()
            optimizer.step()
            optimizer.zero_grad()
    dumper.close()
    dist.barrier()
    dist.destroy_process_group()


def _chunk(config: Any, chunk: int, vpp: int | None, experts: int | None) -> Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    virtual = {} if vpp is None else {"ignore_virtual": False, "vp_stage": chunk}
    return GPTModel(
        config,
        get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=False, normalization="RMSNorm"),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        pre_process=parallel_state.is_pipeline_first_stage(**virtual),
        post_process=parallel_state.is_pipeline_last_stage(**virtual),
        share_embeddings_and_output_weights=True,
        vp_stage=None if vpp is None else chunk,
    )


def _same_weights(chunk: Any, config: Any, parallel_state: Any) -> None:
    """Gives every parameter the weights that it has in every layout, by its name in the whole model."""
    tp, rank = config.tensor_model_parallel_size, parallel_state.get_tensor_model_parallel_rank()
    for path, parameter in chunk.named_parameters():
        parts = path.split(".")
        for number, part in enumerate(parts):
            if part == "layers":
                parts[number + 1] = str(chunk.get_submodule(".".join(parts[: number + 2])).layer_number - 1)
            elif part == "local_experts":
                first = parallel_state.get_expert_model_parallel_rank() * config.num_moe_experts
                parts[number + 1] = str(int(parts[number + 1]) + first // config.expert_model_parallel_size)
        name = ".".join(parts).replace("output_layer", "embedding.word_embeddings")
        split = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
        shape = list(parameter.shape)
        if split is not None:
            shape[split] *= tp
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * 0.1
        if name.endswith("norm.weight"):
            weights += 1
        if split is not None:
            pieces = weights.chunk(2 if "linear_fc1" in name else 1, split)
            weights = torch.cat([piece.chunk(tp, split)[rank] for piece in pieces], split)
        parameter.data.copy_(weights)


def _micro_batches(step: int, micro: int, parallel_state: Any) -> Iterator[torch.Tensor]:
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    size, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    for part in ids.split(micro * size):
        yield part.chunk(size)[rank]


def _forward(batches: Iterator[torch.Tensor], model: Any) -> tuple[torch.Tensor, Any]:
    ids = next(batches)
    positions = torch.arange(LENGTH).repeat(len(ids), 1)
    mask = torch.tril(torch.ones(1, 1, LENGTH, LENGTH)) < 0.5
    output = model(ids[:, :-1], positions, mask, labels=ids[:, 1:])
    return output, functools.partial(_mean)


def _mean(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return output.mean(), {}

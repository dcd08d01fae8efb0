"""Which tokens each pass computes: one request after the other, all at once, in chunks, behind a cached prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.faults.engines.tensor_parallel.model import Batch, Model
from benchmarks.faults.prompts import NEW_TOKENS, Prompt
from dumper.layout import SequenceSpan, TokenLayout

CACHED_PREFIX = 16
"""Tokens that requests share where a schedule has a cache of prefixes."""


@dataclass(frozen=True)
class Schedule:
    concurrent: bool = False
    """All requests in one batch; otherwise one after the other."""
    chunk: int | None = None
    """Tokens of a prompt that one pass takes at most."""
    padding: int = 0
    """Rows of padding at the end of each pass."""
    prefix_cache: bool = False
    """A prompt that begins as an earlier one takes over its keys and values for ``CACHED_PREFIX`` tokens."""


@dataclass
class Request:
    slot: int
    tokens: list[int]
    prompt: int
    done: int = 0
    cached_prefix: int = 0


@torch.inference_mode()
def generate(model: Model, prompts: Sequence[Prompt], schedule: Schedule) -> list[list[int]]:
    """``NEW_TOKENS`` greedy tokens for every prompt, and one pass more that computes the last of them."""
    requests = [Request(number, list(prompt), len(prompt)) for number, prompt in enumerate(prompts)]
    groups = [requests] if schedule.concurrent else [[request] for request in requests]
    for group in groups:
        if schedule.prefix_cache:
            for request in group:
                take_over_prefix(model, request, requests)
        while any(request.done < request.prompt + NEW_TOKENS for request in group):
            waiting = [request for request in group if request.done < request.prompt]
            run_pass(model, waiting or group, schedule)
    return [request.tokens for request in requests]


def take_over_prefix(model: Model, request: Request, requests: Sequence[Request]) -> None:
    """Give a request the keys and values of an earlier request with the same first tokens."""
    head = request.tokens[:CACHED_PREFIX]
    for other in requests[: request.slot]:
        if other.done > CACHED_PREFIX < request.prompt and other.tokens[:CACHED_PREFIX] == head:
            for layer in model.layers:
                layer.attention.keys[request.slot] = layer.attention.keys[other.slot][:CACHED_PREFIX].clone()
                layer.attention.values[request.slot] = layer.attention.values[other.slot][:CACHED_PREFIX].clone()
            request.done = request.cached_prefix = CACHED_PREFIX
            return


def run_pass(model: Model, requests: Sequence[Request], schedule: Schedule) -> None:
    """One forward pass over the next tokens of every request."""
    counts = [min(schedule.chunk or len(request.tokens), len(request.tokens) - request.done) for request in requests]
    logits = model.forward(make_batch(requests, counts, schedule.padding))
    for request, count, row in zip(requests, counts, logits, strict=True):
        request.done += count
        if request.done == len(request.tokens):
            request.tokens.append(int(row.argmax()))


def make_batch(requests: Sequence[Request], counts: Sequence[int], padding: int) -> Batch:
    tokens, positions, spans = [], [], []
    for request, count in zip(requests, counts, strict=True):
        tokens += request.tokens[request.done : request.done + count]
        positions += range(request.done, request.done + count)
        spans.append(SequenceSpan(f"request-{request.slot}", request.done, count))
    tokens += [0] * padding
    positions += [0] * padding
    mode = "decode" if all(request.done >= request.prompt for request in requests) else "extend"
    return Batch(
        torch.tensor(tokens),
        torch.tensor(positions),
        tuple(request.slot for request in requests),
        tuple(request.done for request in requests),
        tuple(counts),
        tuple(request.cached_prefix for request in requests),
        TokenLayout(mode, tuple(spans), len(tokens), np.array(tokens, dtype=np.int64)),
    )

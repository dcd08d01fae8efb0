"""Tensors that Megatron-core hands out by itself: ``megatron.core.tensor_observation`` calls back with the module that
a tensor belongs to, a name, a kind, and which of its dimensions are split or count tokens.

Its first form tells the dimension that is split over tensor parallelism alone; later ones the dimensions of sequence
and batch as well (Megatron-LM's pull request 6648 and what followed it).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_MODULE = "megatron.core.tensor_observation"


class _EveryKind(frozenset[str]):
    """Holds whatever is asked for: kinds are added from release to release."""

    def __contains__(self, kind: object) -> bool:
        return True


@contextmanager
def observing(record: Callable[..., None], kinds: Iterable[str] | None, cp_size: int) -> Iterator[None]:
    """A block in which ``record(name, tensor, dims=…, **tags)`` gets every tensor that Megatron-core hands out, or
    those of some ``kinds`` (``residual_accumulator``, ``router_logits``, …).

    ``cp_size``: ranks of context parallelism. Raises ImportError where Megatron-core is not there or hands nothing out.
    """
    observation = importlib.import_module(_MODULE)

    def observe(
        owner: object,
        name: str,
        kind: str,
        tensor: Any,
        tp_shard_dim: int | None = None,
        sequence_dim: int | None = None,
        batch_dim: int | None = None,
        *later: object,
    ) -> None:
        dimensions = len(getattr(tensor, "shape", ()))
        dims = dims_of(dimensions, tp_shard_dim, sequence_dim, batch_dim, cp_size) if dimensions else None
        layer = layer_of(owner)
        record(name, tensor, dims=dims, **({} if layer is None else {"layer_id": layer}))

    with observation.capture_tensor_observations(observe, _EveryKind() if kinds is None else frozenset(kinds)):
        yield


def layer_of(owner: object) -> int | None:
    """The number of the layer that a module belongs to, from 0; Megatron-core counts over all stages, from 1."""
    number = getattr(owner, "layer_number", None)
    return number - 1 if isinstance(number, int) and not isinstance(number, bool) else None


def dims_of(
    dimensions: int, tp_shard_dim: int | None, sequence_dim: int | None, batch_dim: int | None, cp_size: int = 1
) -> str:
    """The dims of a tensor: ``s[cp:zigzag,tp] b h``; dimensions of which nothing is said are ``h``, or ``d0``, ``d1``.

    A tensor that is not split over tensor parallelism is the same on all its ranks.
    """
    unnamed = [index for index in range(dimensions) if index not in (sequence_dim, batch_dim)]
    words = []
    for index in range(dimensions):
        splits = []
        if index == sequence_dim:
            word = "s"
            splits += ["cp:zigzag"] if cp_size > 1 else []
        elif index == batch_dim:
            word = "b"
        else:
            word = "h" if len(unnamed) == 1 and sequence_dim is not None else f"d{index}"
        if index == tp_shard_dim:
            splits.append("tp")
        words.append(word + (f"[{','.join(splits)}]" if splits else ""))
    return " ".join(words if tp_shard_dim is not None else [*words, "# tp:replicated"])

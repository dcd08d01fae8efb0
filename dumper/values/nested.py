"""Nested tensors (batches of tensors of different lengths) as ordinary ones: the values, and where each part begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dumper.values.plain import UnrecordableError


@dataclass(frozen=True)
class NestedPart:
    """One ordinary tensor of a nested one."""

    name: str
    """``values``, ``offsets``, ``lengths`` or ``sizes``."""
    tensor: torch.Tensor
    has_dims: bool
    """Whether its dimensions are those of the nested tensor without the first, the batch."""


def nested_parts(value: torch.Tensor) -> list[NestedPart]:
    """The parts of a nested tensor of B components, the values last; to be called inside ``undisturbed``.

    ``values`` are those of all components one after the other, of shape ``(sum of lengths, *)`` where the components
    differ in one dimension only; ``offsets`` (int64, shape ``(B + 1,)``) says where each begins and the last ends, and
    ``lengths`` how long each is where there are gaps between them. Where they differ in more dimensions, ``values`` is
    flat and ``sizes`` (int64, shape ``(B, dimensions)``) holds the shape of each. Raises UnrecordableError where the
    values are not there.
    """
    if value.layout == torch.jagged:
        return _jagged_parts(value)
    sizes = value._nested_tensor_size()
    flat = (value if value.is_contiguous() else value.contiguous()).values()
    # The buffer is as long as its storage, whatever the sizes claim.
    needed = int(sizes.prod(-1).sum()) if sizes.dim() == 2 else flat.numel()
    if needed > flat.numel():
        raise UnrecordableError(f"its storage has been freed: {flat.numel()} of {needed} elements are there")
    if sizes.dim() != 2 or 0 in sizes.shape or not bool((sizes[:, 1:] == sizes[:1, 1:]).all()):
        return [NestedPart("sizes", sizes, False), NestedPart("values", flat, False)]
    offsets = torch.cat([sizes.new_zeros(1), sizes[:, 0].cumsum(0)])
    return [NestedPart("offsets", offsets, False), NestedPart("values", flat.view(-1, *sizes[0, 1:].tolist()), True)]


def _jagged_parts(value: torch.Tensor) -> list[NestedPart]:
    # Attributes of torch's own class; its methods are of a subclass and not to be run here.
    jagged: Any = value
    offsets, lengths = jagged._offsets, jagged._lengths
    found = [NestedPart("offsets", offsets, False)]
    if lengths is not None:
        found.append(NestedPart("lengths", lengths, False))
    return [*found, NestedPart("values", jagged._values, True)]


def dims_of_values(dims: str | None) -> str | None:
    """The dims of the values of a nested tensor: those of the tensor without its first dimension, the batch."""
    if dims is None:
        return None
    shown, separator, rest = dims.partition("#")
    words = shown.split()
    return " ".join(words[1:]) + (f" {separator}{rest}" if separator else "") if len(words) > 1 else None

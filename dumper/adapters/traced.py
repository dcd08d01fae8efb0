"""What of an engine's batch a graph of ``torch.compile`` can carry. Runs while a function is traced."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Carried: TypeAlias = tuple[list[str], list[Any], list[str], list[int]]

_NESTED = "\0"
"""Between the names of a mapping and of what is in it."""


def carried(batch: Any) -> Carried:
    """Names and tensors, names and integers, of a batch that is a mapping; none of any other."""
    import torch

    names: list[str] = []
    tensors: list[Any] = []
    number_names: list[str] = []
    numbers: list[int] = []
    if not isinstance(batch, dict):
        return names, tensors, number_names, numbers
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            names.append(str(key))
            tensors.append(value)
        elif isinstance(value, dict):
            for inner, part in value.items():
                if isinstance(part, torch.Tensor):
                    names.append(f"{key}{_NESTED}{inner}")
                    tensors.append(part)
        elif hasattr(value, "get_seq_length"):
            # A cache of Transformers, of which a layout needs only how long it is.
            try:
                length = value.get_seq_length()
            except ValueError:  # of a recurrence, which does not count
                continue
            if isinstance(length, torch.Tensor):
                names.append("past_length")
                tensors.append(length)
            else:
                number_names.append("past_length")
                numbers.append(length)
    return names, tensors, number_names, numbers


def batch_of(names: list[str], tensors: list[Any], number_names: list[str], numbers: list[int]) -> dict[str, Any]:
    """The batch again, when the graph runs."""
    batch: dict[str, Any] = {}
    for name, tensor in zip(names, tensors, strict=True):
        outer, nested, inner = name.partition(_NESTED)
        if nested:
            batch.setdefault(outer, {})[inner] = tensor
        else:
            batch[outer] = tensor
    batch.update(zip(number_names, numbers, strict=True))
    return batch

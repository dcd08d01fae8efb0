"""From any tensor to a plain one whose memory is known to be there; no other is read.

A tensor's data pointer may be null (wrapper subclasses, fake and functional tensors, freed storages), or there may be
less memory behind it than the tensor claims (a storage that was resized). Reading such memory would end the process, or
record values of somebody else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from dumper.values.dtypes import KNOWN, PACKED
from dumper.values.plain import UnrecordableError

_HOST_MEMORY = ("cpu", "cuda")
"""Types of devices whose tensors have a storage with an address; the others copy themselves to the host."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A block whose operations belong to nobody: no subclass, mode, function transform or tracer sees them."""
    internals: Any = torch._C
    tracing = internals._get_tracing_state()
    with contextlib.ExitStack() as stack:
        if tracing is not None:
            internals._set_tracing_state(None)
            stack.callback(internals._set_tracing_state, tracing)
        for guard in ("DisableTorchFunction", "_DisableTorchDispatch"):
            if (made := getattr(torch._C, guard, None)) is not None:
                stack.enter_context(made())
        if (cleared := _without_transforms()) is not None:
            stack.enter_context(cleared)
        stack.enter_context(torch.no_grad())
        yield


def _without_transforms() -> Any:
    """A context in which ``torch.func`` transforms are out of force; None where there are none."""
    functorch = getattr(torch._C, "_functorch", None)
    if functorch is None or functorch.peek_interpreter_stack() is None:
        return None
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()


def readable(value: torch.Tensor) -> torch.Tensor:
    """A plain, detached tensor over the memory of ``value``; to be called and used inside ``undisturbed``.

    Raises UnrecordableError for a tensor that has no bytes to record, or fewer than it claims.
    """
    value = _unwrapped(value)
    _check_kind(value)
    if value.device.type not in _HOST_MEMORY or value.numel() == 0:
        return value.detach() if type(value) in (torch.Tensor, torch.nn.Parameter) else _view_of(value)
    _check_memory(value)
    return _view_of(value)


def as_bytes(value: torch.Tensor) -> torch.Tensor:
    """A readable tensor of a type of less than a byte as its bytes, of the same shape; any other as it is."""
    # torch copies no tensor of such a type.
    return value.view(torch.uint8) if str(value.dtype).removeprefix("torch.") in PACKED else value


def _unwrapped(value: torch.Tensor) -> torch.Tensor:
    """What the wrappers of torch's own transforms stand for."""
    if type(value).__name__ == "AsyncCollectiveTensor":
        # The result of a functional collective, waited for as every use of it would.
        value = value.trigger_wait()  # type: ignore[attr-defined]
    functorch = getattr(torch._C, "_functorch", None)
    while functorch is not None and functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            raise UnrecordableError("inside vmap a value stands for a whole batch; dump it outside")
        value = functorch.get_unwrapped(value)
    if torch._is_functional_tensor(value):
        functional: Any = torch
        functional._sync(value)
        value = functional._from_functional_tensor(value)
    return value


def _check_kind(value: torch.Tensor) -> None:
    if type(value).__name__ == "FakeTensor":  # torch warns of one whose memory is asked for
        raise UnrecordableError(_without_memory(value))
    if value.device.type == "meta":
        raise UnrecordableError("a tensor on the meta device has no values to record")
    if value.is_nested:
        raise UnrecordableError("nested tensors cannot be recorded; dump the parts, value.unbind()")
    if value.layout != torch.strided:
        raise UnrecordableError(f"tensors of layout {value.layout} cannot be recorded; dump value.to_dense()")
    if value.is_quantized:
        raise UnrecordableError("quantized tensors cannot be recorded; dump value.dequantize() or value.int_repr()")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in KNOWN:
        raise UnrecordableError(f"tensors of dtype {dtype} cannot be recorded; convert it, for example with .float()")


def _check_memory(value: torch.Tensor) -> None:
    try:
        storage = value.untyped_storage()
        there, address = storage.nbytes(), value.data_ptr()
    except (RuntimeError, NotImplementedError):
        raise UnrecordableError(_without_memory(value)) from None
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    needed = (value.storage_offset() + last + 1) * value.element_size()
    if needed > there:
        raise UnrecordableError(
            f"its storage has been freed: {there} of {needed} bytes are there"
            if there == 0
            else f"its storage has been resized: it holds {there} bytes, and the tensor needs {needed}"
        )
    if address == 0:
        raise UnrecordableError(_without_memory(value))


def _without_memory(value: torch.Tensor) -> str:
    """What to do with a tensor that has no memory of its own."""
    kind = type(value)
    if kind.__name__ == "FakeTensor":
        return "a FakeTensor has no values to record"
    flatten = getattr(kind, "__tensor_flatten__", None)
    if flatten is not None:
        with contextlib.suppress(Exception):
            names = ", ".join(f"value.{name}" for name in flatten(value)[0])
            return f"a {kind.__name__} keeps its values in other tensors; dump {names}"
    return f"a {kind.__name__} of this kind has no memory of its own; dump the tensors that it is made of"


def _view_of(value: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of torch's own class."""
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return value.detach()
    plain = torch.empty(0, dtype=value.dtype, device=value.device)
    plain = plain.set_(value.untyped_storage(), value.storage_offset(), value.shape, value.stride())
    if value.is_conj():
        plain = plain.conj()
    return torch._neg_view(plain) if value.is_neg() else plain

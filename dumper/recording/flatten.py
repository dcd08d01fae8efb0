"""Values that hold others, taken apart by name: dicts, tuples and dataclasses, and the parameters of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dumper.adapters.device_mesh import dims_of_parameter
from dumper.adapters.megatron_modules import main_gradient, paths_in_whole, whole_model

MAXIMUM_DEPTH = 16
"""Deeper nesting is yielded as it is: a container that holds itself must not recurse without end."""


def named_leaves(name: str, value: Any, *, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted name, leaf)`` for a value that may be nested.

    Mappings (a Transformers ``ModelOutput`` is one) contribute their keys, dataclasses their fields, lists and
    tuples their indices (named tuples their field names); None is left out, since an absent optional output is
    no value. Anything else, a tensor above all, is a leaf under the name it has got so far.
    """
    if value is None:
        return
    children = None if depth >= MAXIMUM_DEPTH else _children(value)
    if children is None:
        yield name, value
        return
    for key, child in children:
        yield from named_leaves(f"{name}.{key}", child, depth=depth + 1)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """The named parts of a container, None for a leaf."""
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple) and any(_may_hold_tensors(child) for child in value):
        return [(str(index), child) for index, child in enumerate(value)]
    return None


def _may_hold_tensors(value: Any) -> bool:
    """Whether a list is worth splitting: a list of plain numbers or strings is one value."""
    return not isinstance(value, bool | int | float | complex | str | bytes | type(None))


def can_hold_tensors(kind: type) -> bool:
    """Whether values of this type have named parts: maps, lists, tuples and dataclasses."""
    return issubclass(kind, Mapping | list | tuple) or dataclasses.is_dataclass(kind)


def tensor_leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """The tensors and arrays inside a nested value, by name; empty for plain values."""
    return [(path, leaf) for path, leaf in named_leaves(name, value) if _is_array(leaf)]


def _is_array(value: Any) -> bool:
    """Whether a value is a tensor or an array, and no scalar, without importing the libraries that they come from."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "__setitem__")


def named_parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """The leaves of a nested value as ``named_leaves`` gives them; of an object of another class what its attributes
    hold, those left out that begin with two underscores, can be called, or cannot be read."""
    if _children(value) is None and not _is_plain(value):
        attributes = {}
        for key in dir(value):
            if key.startswith("__"):
                continue
            try:
                attribute = getattr(value, key)
            except Exception:
                continue
            if not callable(attribute):
                attributes[key] = attribute
        value = attributes
    return list(named_leaves(name, value))


def _is_plain(value: Any) -> bool:
    """Whether a value is recorded as one: numbers, text, lists of them, and tensors."""
    return isinstance(value, list | tuple) or _is_array(value) or not _may_hold_tensors(value)


_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Under which ``torch.compile``, activation checkpointing and FSDP hold the module that they wrap."""
_AS_MODULE = ("DistributedDataParallel", "DataParallel", "Float16Module")
"""Classes that hold theirs as ``module``: of torch and Megatron-core."""


def unwrapped(module: Any) -> Any:
    """The module that DDP, ``torch.compile`` and the like hold."""
    return unwrapped_with_way(module)[0]


def unwrapped_with_way(module: Any) -> tuple[Any, str]:
    """The same with the path that leads there: ``module._orig_mod.``."""
    way = ""
    while True:
        names = [*_WRAPPERS, *(("module",) if type(module).__name__ in _AS_MODULE else ())]
        held = next((name for name in names if module._modules.get(name) is not None), None)
        if held is None:
            return module, way
        module, way = module._modules[held], f"{way}{held}."


def parameters(
    model: Any,
    prefix: str,
    *,
    with_values: bool = True,
    with_gradients: bool = True,
    get_grad: Callable[[Any], Any] | None = None,
    as_it_is: bool = False,
    dims: str | None = None,
) -> Iterator[tuple[str, Any, str, str | None]]:
    """Yield ``(name, tensor, stream, dims)`` of each parameter of a ``torch.nn.Module``, and of its gradient if any;
    ``dims`` where the parameter does not say how it is split.

    Unless ``as_it_is``, what wraps modules is no part of the name, and those of Megatron-core have the name that they
    have in the whole model.
    """
    held = model if as_it_is or not hasattr(model, "_modules") else unwrapped(model)
    known = None if as_it_is else whole_model(held)
    moved = {} if known is None else paths_in_whole(held, known)
    for path_here, parameter in held.named_parameters():
        path = path_here
        own, shape = dims_of_parameter(parameter, dims), None
        if known is not None:
            owner, dot, last = path_here.rpartition(".")
            path = known.name_of_parameter(f"{moved.get(owner, owner)}{dot}{last}", parameter)
            own, shape = known.dims_of_parameter(path, parameter, dims)
        name = prefix + (path if as_it_is else ".".join(part for part in path.split(".") if part not in _WRAPPERS))
        if with_values:
            yield name, parameter if shape is None else parameter.view(shape), "value", own
        if with_gradients:
            gradient = main_gradient(parameter) if get_grad is None else get_grad(parameter)
            if gradient is not None:
                yield name, gradient if shape is None else gradient.view(shape), "grad", own

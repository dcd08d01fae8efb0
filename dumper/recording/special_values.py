"""Values that are not recorded as they come: nested ones part by part, of a DTensor what this rank holds, gradients
when the backward pass has computed them."""

from __future__ import annotations

import sys
import weakref

from dumper.adapters.device_mesh import is_dtensor, local_shard
from dumper.recording.flatten import can_hold_tensors, tensor_leaves

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from dumper.adapters.protocol import Parallel
    from dumper.values.source import Source

    Wants = Callable[[Source, str | None, Mapping[str, Any], int | None], bool]
    Submit = Callable[[Source, Any, str | None, Mapping[str, Any], int | None], None]


class SpecialValues:
    """Takes what is special apart and hands it to ``submit`` again. Its methods may raise."""

    __slots__ = ("_add_axes", "_failed", "_hooks", "_submit", "_wants")

    def __init__(
        self, submit: Submit, add_axes: Callable[[Parallel], None], wants: Wants, failed: Callable[[], None]
    ) -> None:
        """``add_axes``: told the axes of a DTensor's mesh. ``wants``: asked before a function is called for its value.
        ``failed``: told when that raises."""
        self._submit = submit
        self._add_axes = add_axes
        self._wants = wants
        self._failed = failed
        self._hooks: dict[int, tuple[weakref.ref[Any], dict[tuple[str, ...], Any]]] = {}
        """Of tensors that outlive a pass, by their ids: the hook under each name and tags."""

    def submit_parts(
        self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None, current: int
    ) -> bool | None:
        """Record the tensors in a nested value (a module's tuple, an output object) as ``name.path``, and of a DTensor
        what this rank holds; ``current`` is the step under way.

        False for a value that holds no tensors; None where no value of its type does.
        """
        if is_dtensor(value):
            self._submit_shard(source, value, dims, tags, step, current)
            return True
        if not can_hold_tensors(type(value)):
            if not callable(value) or hasattr(value, "dtype") or hasattr(value, "named_parameters"):
                return None
            self._submit_result(source, value, dims, tags, step)
            return True
        leaves = tensor_leaves(source.name, value)
        for leaf_name, leaf in leaves:
            self._submit(source.part(leaf_name), leaf, dims, tags, step)
        return bool(leaves)

    def _submit_result(
        self, source: Source, function: Callable[[], Any], dims: str | None, tags: Mapping[str, Any], step: int | None
    ) -> None:
        """Record what a function gives; it is not called where nobody wants it."""
        if not self._wants(source, dims, tags, step):
            return
        try:
            value = function()
            if callable(value) and not hasattr(value, "dtype"):
                raise TypeError("its value is a function that gives a function")
        except Exception:
            self._failed()
            raise
        self._submit(source, value, dims, tags, step)

    def _submit_shard(
        self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None, current: int
    ) -> None:
        """Record the local part of a DTensor, its mesh as parallel layout and its placements as dims."""
        local, dims, axes = local_shard(value, dims)
        self._add_axes(axes)
        self._submit(source.value_alone(), local, dims, tags, step)
        if source.grad and source.stream == "value":
            self.await_gradient(source, value, dims, tags, current)

    def await_gradient(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int) -> None:
        """Record the gradient of ``value`` when it arrives, under the step of its forward pass.

        Values that no gradient flows into (no tensor, or ``requires_grad`` is False) are left alone.
        """
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor) or not value.requires_grad:
            return
        submit, gradient_source = self._submit, source.gradient()
        dims = dims if source.gradient_dims is None else source.gradient_dims
        hook = value.register_hook(lambda gradient: submit(gradient_source, gradient, dims, tags, step))
        if value.is_leaf:
            # A parameter outlives the pass, and all later ones would call the hook.
            self._replace_hook(value, (source.name, *sorted(map(_in_short, tags.items()))), hook)

    def _replace_hook(self, leaf: Any, key: tuple[str, ...], hook: Any) -> None:
        """Take off the hook with which a value was recorded before that is no result of anything."""
        number = id(leaf)
        known, hooks = self._hooks.get(number, (None, {}))
        if known is None or known() is not leaf:
            hooks = {}
            forget = self._hooks.pop
            self._hooks[number] = weakref.ref(leaf, lambda _: forget(number, None)), hooks
        earlier = hooks.get(key)
        if earlier is not None:
            earlier.remove()
        hooks[key] = hook


def _in_short(tag: tuple[str, Any]) -> str:
    """A tag as text; a tensor, which its device may be computing, as the name of its type."""
    key, value = tag
    return f"{key}={value if isinstance(value, int | float | str) else type(value).__name__}"

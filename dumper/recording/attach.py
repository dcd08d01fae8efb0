"""Recording the inputs and outputs of modules by their path, without touching source.

The names are module paths as in ``model.named_modules()``, so that two models of one architecture, or a name map of
the comparator, can be lined up: the output of ``layers.0.mlp`` is recorded as ``layers.0.mlp``, the parts of a
nested output as ``layers.0.mlp.0``, inputs as ``layers.0.mlp.input.0`` or ``layers.0.mlp.input.hidden_states``.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dumper.recording.flatten import named_leaves

if TYPE_CHECKING:
    import torch


class Dump(Protocol):
    """The part of ``dumper.dump`` that hooks need."""

    def __call__(self, name: str, value: Any, *, grad: bool = False, **tags: Any) -> None: ...


@dataclass
class Attachment:
    """Hooks that ``attach`` placed; a context manager whose exit takes them off again."""

    paths: tuple[str, ...]
    """Paths of the modules that are recorded."""
    _handles: list[Any] = field(default_factory=list, repr=False)

    def detach(self) -> None:
        """Take the hooks off. May be called twice."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


def attach(
    dump: Dump,
    model: torch.nn.Module,
    pattern: str,
    *,
    inputs: bool = False,
    outputs: bool = True,
    grad: bool = False,
) -> Attachment:
    """Record the outputs (and inputs) of every module whose path matches ``pattern``.

    ``pattern`` is a dotted path in which ``*`` stands for any text within one component and ``**`` for any number of
    components: ``layers.*.mlp``, ``**.o_proj``. With ``grad`` the gradients of what is recorded are recorded too.

    Raises ValueError when no module matches (with the nearest paths) or when neither inputs nor outputs are wanted.
    """
    if not (inputs or outputs):
        raise ValueError("attach: neither inputs nor outputs are to be recorded; set one of them")
    modules = matching_modules(model, pattern)
    attachment = Attachment(tuple(modules))
    for path, module in modules.items():
        if inputs:
            before = functools.partial(_record_inputs, dump, path, grad)
            attachment._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if outputs:
            after: Callable[..., None] = functools.partial(_record_output, dump, path, grad)
            attachment._handles.append(module.register_forward_hook(after))
    return attachment


def matching_modules(model: torch.nn.Module, pattern: str) -> dict[str, torch.nn.Module]:
    """The modules below ``model`` whose path matches ``pattern``, by path, in the order of the model.

    Raises ValueError when there is none.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    expression = path_expression(pattern)
    found = {path: module for path, module in modules.items() if expression.fullmatch(path)}
    if not found:
        nearest = difflib.get_close_matches(pattern, list(modules), n=3, cutoff=0.3) or list(modules)[:3]
        hint = f"; the nearest paths are {', '.join(nearest)}" if nearest else "; the model has no submodules"
        raise ValueError(f"attach: no module of {type(model).__name__} matches {pattern!r}{hint}")
    return found


def path_expression(pattern: str) -> re.Pattern[str]:
    """The regular expression, for full matches, of a path pattern with ``*`` and ``**``."""
    parts = re.split(r"(\*\*\.|\.\*\*|\*\*|\*)", pattern)
    meaning = {"**.": r"(?:[^.]+\.)*", ".**": r"(?:\.[^.]+)*", "**": ".*", "*": r"[^.]*"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _record_inputs(
    dump: Dump,
    path: str,
    grad: bool,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    named = {str(index): value for index, value in enumerate(args)} | dict(kwargs)
    for name, value in named_leaves(f"{path}.input", named):
        if _is_tensor(value):
            dump(name, value, grad=grad)


def _record_output(
    dump: Dump, path: str, grad: bool, module: torch.nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    for name, value in named_leaves(path, output):
        if _is_tensor(value):
            dump(name, value, grad=grad)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)

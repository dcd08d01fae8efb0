"""Recording the inputs and outputs of modules by their path, without touching source.

The names are module paths as in ``model.named_modules()``, so that two models of one architecture, or a name map of
the comparator, can be lined up: the output of ``layers.0.mlp`` is recorded as ``layers.0.mlp``, the parts of a
nested output as ``layers.0.mlp.0``, inputs as ``layers.0.mlp.input.0`` or ``layers.0.mlp.input.hidden_states``.
Each path is a tap of the run, so that what was attached and never ran is listed as silent.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dumper.adapters.megatron_modules import whole_model
from dumper.recording.flatten import named_leaves, unwrapped, unwrapped_with_way

if TYPE_CHECKING:
    import torch

    from dumper.adapters.megatron_modules import WholeModel


class Tap(Protocol):
    """The part of a tap that hooks need."""

    on: bool

    def dump(self, name: str, value: Any, *, dims: str | None, dims_grad: str | None, grad: bool) -> None: ...


InstallTaps = Callable[[str, Sequence[str]], Sequence[Tap]]
"""Makes the taps of a model, which is called so, for some paths."""


@dataclass
class Attachment:
    """Hooks that ``attach`` placed; a context manager whose exit takes them off again."""

    paths: tuple[str, ...]
    """Paths of the modules that are recorded."""
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def detach(self) -> None:
        """Take the hooks off. May be called twice."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


def attach(
    install_taps: InstallTaps,
    model: torch.nn.Module,
    pattern: str,
    *,
    inputs: bool = False,
    outputs: bool = True,
    grad: bool = False,
    dims: str | None = None,
    dims_grad: str | None = None,
) -> Attachment:
    """Record the outputs (and inputs) of every module whose path matches ``pattern``.

    ``pattern`` is a dotted path in which ``*`` stands for any text within one component and ``**`` for any number of
    components: ``layers.*.mlp``, ``**.o_proj``. With ``grad`` the gradients of what is recorded are recorded too.
    ``dims`` are those of the outputs that have as many dimensions (of all, where they are declarations alone), and
    ``dims_grad`` those of their gradients, where they differ.
    A module is recorded however it is called, ``module(x)`` or ``module.forward(x)``, and one that stands at several
    paths under each of them. What wraps a module (DDP, ``torch.compile``, activation checkpointing) is no part of its
    path, so that a model has the same names with it and without. Layers and experts of Megatron-core have their numbers
    in the whole model, and what its modules give has dims without being told, unless ``dims`` are given.

    Raises ValueError when no module matches (with the nearest paths) or when neither inputs nor outputs are wanted.
    """
    if not (inputs or outputs):
        raise ValueError("attach: neither inputs nor outputs are to be recorded; set one of them")
    known = whole_model(model)
    modules = matching_modules(model, pattern, known)
    attachment = Attachment(tuple(modules))
    taps = install_taps(type(unwrapped(model)).__name__, list(modules))
    for (path, module), tap in zip(modules.items(), taps, strict=True):
        before = functools.partial(_record_inputs, tap, path, grad) if inputs else None
        after = functools.partial(_record_output, tap, path, grad, dims, dims_grad) if outputs else None
        if known is not None and outputs and dims is None:
            after = functools.partial(_record_known_output, tap, path, grad, known)
        watch(module, before, after, attachment._undo)
    return attachment


def watch(
    module: torch.nn.Module,
    before: Callable[..., None] | None,
    after: Callable[..., None] | None,
    undo: list[Callable[[], None]],
) -> None:
    """Call ``before`` and ``after`` around every call of a module; what takes that back is added to ``undo``."""
    calls = {"entered": 0}  # by the module's own __call__, in any thread, and not yet in its forward

    def entered(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        calls["entered"] += 1
        if before is not None:
            before(module, args, kwargs)

    undo.append(module.register_forward_pre_hook(entered, with_kwargs=True).remove)
    if after is not None:
        undo.append(module.register_forward_hook(after).remove)
    own = module.__dict__.get("forward")

    # A method of the module, so that a copy of the module calls itself and not the module that was copied.
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = own if own is not None else functools.partial(type(self).forward, self)
        if calls["entered"]:  # the hooks record
            calls["entered"] -= 1
            return call(*args, **kwargs)
        if before is not None:
            before(self, args, kwargs)
        output = call(*args, **kwargs)
        if after is not None:
            after(self, args, output)
        return output

    method = types.MethodType(forward, module)
    try:
        module.forward = method
    except (AttributeError, RuntimeError):  # a compiled module
        return

    def restore() -> None:
        if module.__dict__.get("forward") is not method:
            return  # somebody has put another one around it
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own

    undo.append(restore)


def matching_modules(
    model: torch.nn.Module, pattern: str, known: WholeModel | None = None
) -> dict[str, torch.nn.Module]:
    """The modules below ``model`` whose path matches ``pattern``, by path, in the order of the model.

    A module that stands at several paths is there by each of them. ``known``: what the model is a part of. Raises
    ValueError when there is none.
    """
    modules = list(_paths(model, "", "", (), known))
    matches = path_expression(pattern).fullmatch
    matching = {path: module for path, as_it_is, module in modules if matches(path) or matches(as_it_is)}
    if known is not None:
        matching = {
            path: module
            for path, module in matching.items()
            if known.is_wanted(path, pattern) and not known.is_part(module)
        }
    # Nobody calls a list of modules: it would be a tap that never fired. Named alone it is a mistake, and may be one.
    found = {path: module for path, module in matching.items() if can_be_called(module)} or matching
    if not found:
        paths = list(dict.fromkeys(path for path, _, _ in modules))
        nearest = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
        hint = f"; the nearest paths are {', '.join(nearest)}" if nearest else "; the model has no submodules"
        raise ValueError(f"attach: no module of {type(model).__name__} matches {pattern!r}{hint}")
    return found


def can_be_called(module: torch.nn.Module) -> bool:
    """Whether a module has a ``forward``, as those that only hold others (``ModuleList``, ``ModuleDict``) have not."""
    forward = getattr(module, "forward", None)
    return getattr(forward, "__name__", "") != "_forward_unimplemented"


def _paths(
    module: torch.nn.Module, prefix: str, prefix_as_it_is: str, within: tuple[int, ...], known: WholeModel | None
) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """Every path below a module, without what wraps modules and as it is, but none that comes back to a module that it
    leads through."""
    inner, way = unwrapped_with_way(module)
    prefix_as_it_is += way
    for name, child in inner._modules.items():
        if child is not None and id(held := unwrapped(child)) not in within:
            called = name if known is None else known.name_of(inner, name, held)
            path, as_it_is = f"{prefix}{called}", f"{prefix_as_it_is}{called}"
            yield path, as_it_is, held
            yield from _paths(child, f"{path}.", f"{as_it_is}.", (*within, id(held)), known)


def path_expression(pattern: str) -> re.Pattern[str]:
    """The regular expression, for full matches, of a path pattern with ``*`` and ``**``."""
    parts = re.split(r"(\*\*\.|\.\*\*|\*\*|\*)", pattern)
    meaning = {"**.": r"(?:[^.]+\.)*", ".**": r"(?:\.[^.]+)*", "**": ".*", "*": r"[^.]*"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts))


def _record_inputs(
    tap: Tap,
    path: str,
    grad: bool,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    if not tap.on:
        return
    named = {str(index): value for index, value in enumerate(args)} | dict(kwargs)
    for name, value in named_leaves(f"{path}.input", named):
        if _is_tensor(value):
            tap.dump(name, value, dims=None, dims_grad=None, grad=grad)


def _record_output(
    tap: Tap,
    path: str,
    grad: bool,
    dims: str | None,
    dims_grad: str | None,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    output: Any,
) -> None:
    if not tap.on:
        return
    for name, value in named_leaves(path, output):
        if _is_tensor(value):
            tap.dump(name, value, dims=_of_rank(dims, value), dims_grad=_of_rank(dims_grad, value), grad=grad)


def _record_known_output(
    tap: Tap, path: str, grad: bool, known: WholeModel, module: torch.nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    """The same for a module of Megatron-core, whose dims are known; biases that it hands on are none of its outputs."""
    if not tap.on:
        return
    for name, value in named_leaves(path, output):
        if _is_tensor(value) and not (value.is_leaf and value.requires_grad):
            as_named = known.with_all_dimensions(path, module, args, value)
            dims = known.dims_of_output(path, module, as_named.dim())
            # What it is made of has the gradient.
            tap.dump(name, as_named, dims=dims, dims_grad=None, grad=grad and as_named is value)


def _of_rank(dims: str | None, value: torch.Tensor) -> str | None:
    """Dims that name as many dimensions as a tensor has, or none."""
    count = 0 if dims is None else len(dims.partition("#")[0].split())
    return dims if count in (0, value.dim()) else None


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)

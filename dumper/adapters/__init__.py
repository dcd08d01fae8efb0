"""Framework knowledge, one small adapter per framework, found through what the process has already imported.

A framework that is not imported costs a dictionary look-up: its adapter is not even loaded. The recorder uses
two functions, ``describe_process`` and ``read_batch``; neither raises because of a framework.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from dumper.adapters.protocol import (
    Adapter,
    GraphFacts,
    KnowsBackends,
    KnowsGraphs,
    KnowsModel,
    Parallel,
    PendingLayout,
    Process,
)
from dumper.layout import TokenLayout
from dumper.log_once import log

__all__ = [
    "Adapter",
    "Parallel",
    "PendingLayout",
    "Process",
    "complete_at_start",
    "describe_graph",
    "describe_process",
    "is_settled",
    "last_tokens",
    "loaded_adapters",
    "read_batch",
    "register",
]

_KNOWN: tuple[tuple[str, str, str], ...] = (
    # The framework's own module, the adapter's module, its class. Engines come before what they build on.
    ("sglang.srt", "dumper.adapters.sglang", "SGLangAdapter"),
    ("vllm", "dumper.adapters.vllm", "VLLMAdapter"),
    ("megatron.core", "dumper.adapters.megatron", "MegatronAdapter"),
    ("transformers", "dumper.adapters.transformers", "TransformersAdapter"),
    ("torch", "dumper.adapters.torch_distributed", "TorchDistributedAdapter"),
)

_ENGINES = frozenset({"sglang", "vllm", "megatron"})

_loaded: dict[str, Adapter | None] = {}
_registered: list[Adapter] = []


def register(adapter: Adapter) -> None:
    """Add an adapter for a framework that tensortap does not know; it is asked before all others."""
    _registered.insert(0, adapter)


def loaded_adapters() -> tuple[Adapter, ...]:
    """Adapters of the frameworks that this process has imported, the most specific first."""
    found = list(_registered)
    for framework, module, class_name in _KNOWN:
        if framework not in sys.modules:
            continue
        if module not in _loaded:
            _loaded[module] = _load(module, class_name)
        adapter = _loaded[module]
        if adapter is not None:
            found.append(adapter)
    return tuple(found)


def _load(module: str, class_name: str) -> Adapter | None:
    try:
        adapter: Adapter = getattr(importlib.import_module(module), class_name)()
    except Exception as error:
        log().warning("tensortap: the adapter %s cannot be used: %s: %s", module, type(error).__name__, error)
        return None
    return adapter


def describe_process(*, in_full: bool = True, batch: object = None) -> Process:
    """Rank, world size, parallel layout and versions as the imported frameworks tell them; of the model what the batch
    of the step under way tells.

    Axes of several adapters are joined; the more specific adapter wins. Rank 0 of 1 when no framework has
    initialised a process group. In full: with versions, settings and the axes of every device mesh, which take
    milliseconds; everything else takes microseconds.
    """
    rank, world_size, framework = 0, 1, None
    parallel: Parallel = {}
    versions: dict[str, str] = {}
    for adapter in loaded_adapters():
        try:
            place = adapter.rank()
            axes = adapter.parallel()
            adapter_versions = adapter.versions() if in_full else {}
        except Exception as error:
            _warn(adapter, "the parallel layout", error)
            continue
        if place is not None and framework is None:
            rank, world_size = place
            framework = adapter.name
        parallel = {**axes, **parallel}
        versions = {**adapter_versions, **versions}
    if in_full:
        parallel = {**_axes_of_meshes(), **parallel}
    settings: dict[str, str] = {}
    if in_full:
        from dumper.adapters.process_settings import process_settings

        settings = {**process_settings(), **_backends(), **_model_facts(batch)}
    return Process(
        rank=rank,
        world_size=world_size,
        parallel=parallel,
        versions=versions,
        settings=settings,
        framework=framework,
    )


def _backends() -> dict[str, str]:
    found: dict[str, str] = {}
    for adapter in loaded_adapters():
        if isinstance(adapter, KnowsBackends):
            try:
                found |= adapter.backends()
            except Exception as error:
                _warn(adapter, "the chosen backends", error)
    return found


def _model_facts(batch: object) -> dict[str, str]:
    for adapter in loaded_adapters() if batch is not None else ():
        if isinstance(adapter, KnowsModel) and adapter.accepts(batch):
            try:
                return adapter.model_facts(batch)
            except Exception as error:
                _warn(adapter, "the model's config", error)
    return {}


def _axes_of_meshes() -> Parallel:
    """Those of device meshes, and the one over which ``DistributedDataParallel`` averages gradients."""
    if "torch.distributed" not in sys.modules:
        return {}
    from dumper.adapters.device_mesh import existing_meshes, mesh_axes
    from dumper.adapters.torch_distributed import data_parallel_axis, group_rank

    try:
        if group_rank() is None:
            return {}
        found = mesh_axes(existing_meshes())
        return found if "dp" in found else {**data_parallel_axis(), **found}
    except Exception as error:
        _warn_once(f"tensortap: the axes of a device mesh cannot be read: {type(error).__name__}: {error}")
        return {}


def describe_graph() -> GraphFacts | None:
    """What the engine that captures a CUDA graph right now knows of it; None where nobody knows."""
    for adapter in loaded_adapters():
        if isinstance(adapter, KnowsGraphs):
            try:
                facts = adapter.graph_facts()
            except Exception as error:
                _warn(adapter, "a CUDA graph", error)
                continue
            if facts is not None:
                return facts
    return None


def complete_at_start(batch: object) -> bool:
    """Whether the batch should be read when the step begins, and not later: nothing will be padded any more, and
    what the pass does (fill a cache) would blur it. An adapter with a method ``note_start`` sees the batch before that,
    and may keep of it what the pass will throw away."""
    complete = False
    for adapter in loaded_adapters():
        if adapter.accepts(batch):
            complete |= adapter.complete_at_start
            note = getattr(adapter, "note_start", None)
            if note is not None:
                try:
                    note(batch)
                except Exception as error:
                    _warn(adapter, f"a {type(batch).__name__}", error)
    return complete


def is_settled(process: Process) -> bool:
    """Whether the rank is final: told by the engine of the process where it has one, and not by torch alone.

    While an engine starts, torch already has ranks that the engine counts differently.
    """
    engines = [adapter.name for adapter in loaded_adapters() if adapter.name in _ENGINES]
    return process.framework is not None and (not engines or process.framework in engines)


def read_batch(batch: object) -> TokenLayout | PendingLayout | None:
    """The token layout of an engine's batch object, None when no adapter understands it (said once)."""
    if isinstance(batch, TokenLayout):
        return batch
    for adapter in loaded_adapters():
        try:
            if adapter.accepts(batch):
                return adapter.read_batch(batch)
        except Exception as error:
            _warn(adapter, f"a {type(batch).__name__}", error)
            return None
    _warn_once(
        f"tensortap: no adapter understands a {type(batch).__module__}.{type(batch).__qualname__} as a batch; "
        f"the step gets no token layout (give one with step(layout=TokenLayout(...)))"
    )
    return None


def last_tokens(value: Any, batch: Any) -> Any:
    """The rows of ``value`` that belong to the last token of each sequence. Raises ValueError when nobody can tell."""
    _look_up_finders()
    for finder in _finders:
        if finder.accepts(batch):
            return finder.last_tokens(value, batch)
    raise ValueError(f"no adapter can tell the last tokens of a {type(batch).__module__}.{type(batch).__qualname__}")


_finders: list[Any] = []
"""Adapters that can tell last tokens."""


def _look_up_finders() -> bool:
    """Bring ``_finders`` up to date. In code that ``torch.compile`` traces, this runs while the code is traced: what
    depends on the imported modules would be compiled anew with every import."""
    _finders[:] = [adapter for adapter in loaded_adapters() if hasattr(adapter, "last_tokens")]
    return True


# What ``torch._dynamo.assume_constant_result`` does; to import it here would cost seconds.
setattr(_look_up_finders, "_dynamo_marked_constant", True)  # noqa: B010

_warned: set[str] = set()


def _warn(adapter: Adapter, what: str, error: Exception) -> None:
    _warn_once(f"tensortap: the {adapter.name} adapter cannot read {what}: {type(error).__name__}: {error}")


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log().warning(message)

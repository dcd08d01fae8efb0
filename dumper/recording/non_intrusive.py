"""Recording a model by what it is given and returns, under the names of SGLang's dumper.

The batch (token ids, positions, lengths, …) goes by its bare names; what modules are given and return, where that is
wanted, as ``non_intrusive__PATH.inputs.NAME`` and ``non_intrusive__PATH.output``. Everything that is recorded while a
layer runs has its number as ``layer_id``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dumper.recording.attach import Attachment, watch
from dumper.recording.context import AddedTags, ThreadTags

if TYPE_CHECKING:
    import torch

PREFIX = "non_intrusive__"
OF_BATCH = (
    "input_ids",
    "positions",
    "position_ids",
    "seq_lens",
    "req_pool_indices",
    "rids",
    "cu_seqlens_q",
    "cu_seqlens_kv",
    "qkv_format",
)
"""What a batch is known by, in the objects of SGLang and Megatron-core and as arguments."""
_OF_OUTPUT = ("next_token_logits",)
_LAYER = re.compile(r"(?:.+\.)?layers\.(\d+)")


class Recorder(Protocol):
    """The part of the recorder that hooks need."""

    def dump(self, name: str, value: Any) -> None: ...


def watch_model(recorder: Recorder, of_thread: ThreadTags, model: torch.nn.Module, *, everything: bool) -> Attachment:
    """Record the batch that a model is given, and what every module is given and returns where ``everything`` is
    wanted."""
    modules = dict(model.named_modules())
    attachment = Attachment(tuple(modules))
    for path, module in modules.items():
        layer = _layer_number(path, module)
        scope = None if layer is None else AddedTags(of_thread, {"layer_id": layer})
        if scope is not None:
            begin = functools.partial(_begin, scope)
            attachment._undo.append(module.register_forward_pre_hook(begin).remove)
        if everything or path == "":
            before = functools.partial(_record_inputs, recorder, path, everything)
            after = functools.partial(_record_output, recorder, path) if everything else None
            watch(module, before, after, attachment._undo)
        if scope is not None:
            # Behind the hook that records what the layer returns.
            end = functools.partial(_end, scope)
            attachment._undo.append(module.register_forward_hook(end, always_call=True).remove)
    return attachment


def _layer_number(path: str, module: Any) -> int | None:
    """The number of a layer, from 0; None for a module that is none."""
    found = _LAYER.fullmatch(path)
    if found is None:
        return None
    for name, first in (("layer_id", 0), ("layer_number", 1)):
        number = getattr(module, name, None)
        if isinstance(number, int) and not isinstance(number, bool):
            return number - first
    return int(found[1])


def _begin(scope: AddedTags, *call: Any) -> None:
    scope.__enter__()


def _end(scope: AddedTags, *call: Any) -> None:
    scope.__exit__()


def _record_inputs(
    recorder: Recorder,
    path: str,
    everything: bool,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    named = {**{str(number): value for number, value in enumerate(args)}, **kwargs}
    for name, value in named.items():
        for key, part in _parts(value, OF_BATCH if path == "" else ()):
            last = key or name
            if last in OF_BATCH:
                recorder.dump(last, part)
            elif everything:
                recorder.dump(PREFIX + ".".join(word for word in (path, "inputs", name, key) if word), part)


def _record_output(recorder: Recorder, path: str, module: torch.nn.Module, args: Any, output: Any) -> None:
    for key, part in _parts(output, _OF_OUTPUT):
        recorder.dump(PREFIX + ".".join(word for word in (path, "output", key) if word), part)


def _parts(value: Any, attributes: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The tensors that a value is made of, the only one without a name; of another object the attributes named."""
    import torch

    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, tuple | list):
        tensors = [part for part in value if isinstance(part, torch.Tensor)]
        for number, part in enumerate(tensors):
            yield ("" if len(tensors) == 1 else str(number)), part
    elif value is not None and not isinstance(value, str | int | float | bool):
        held = getattr(value, "tensors", None)
        if isinstance(held, Mapping):
            yield from ((str(key), part) for key, part in held.items())
            return
        for name in attributes:
            attribute = getattr(value, name, None)
            if attribute is not None:
                yield name, attribute

"""What ``torch.compile`` traces of a tap, and never runs: it leaves an operator in the graph (``compiled.py``).

While a function is traced, ``Tap.record``, ``dumper.dump``, ``dumper.step`` and ``dumper.end_step`` come here. Nothing
here may raise or break the graph, whatever the values and tags are. Gradients of values in a graph are not recorded.
"""

from __future__ import annotations

import sys

from dumper.recording.compiled import NOTHING, TEXT, TRACED, TRUTH, VALUE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from dumper.values.source import Source

    Packed: TypeAlias = tuple[list[str], list[int], list[str], list[float], list[str], list[Any], list[str]]

_WRITTEN = (str, bool, type(None))
"""Types of tags that travel as text."""


def record_in_graph(recorder: int | None, source: Source, value: Any, dims: Any, tags: dict[str, Any]) -> None:
    """Record a value when the graph runs: tensors, numbers, text, and the tensors in tuples, lists and dicts."""
    name = source.name
    tags = {**TRACED.tags, **tags}
    if type(name) is not str or not (dims is None or type(dims) is str):
        # Refused when the graph runs, where that is counted.
        _record(recorder, str(type(name)), source, (), None, {})
    elif not _record_parts(recorder, name, source, value, dims, tags, 0):
        _record(recorder, name, source, value, dims, tags)


def _record_parts(
    recorder: int | None, name: str, source: Source, value: Any, dims: str | None, tags: dict[str, Any], depth: int
) -> bool:
    """Whether there were tensors in a nested value."""
    if isinstance(value, dict):
        parts = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, (tuple, list)) and hasattr(value, "_fields"):
        parts = [(field, getattr(value, field)) for field in value._fields]
    elif isinstance(value, (tuple, list)):
        parts = [(str(number), child) for number, child in enumerate(value)]
    else:
        return False
    found = False
    for key, child in parts:
        if _is_tensor(child):
            _record(recorder, f"{name}.{key}", source, child, dims, tags)
            found = True
        elif depth < 8 and _record_parts(recorder, f"{name}.{key}", source, child, dims, tags, depth + 1):
            found = True
    return found


def _record(
    recorder: int | None, name: str, source: Source, value: Any, dims: str | None, tags: dict[str, Any]
) -> None:
    import torch

    level = source.level if type(source.level) is str else None
    operators = torch.ops.tensortap
    if _is_tensor(value):
        operators.record(value, recorder, name, dims, level, source.tap, *_packed(tags))
    elif type(value) is int or type(value) is float or type(value) in _WRITTEN:
        operators.record_plain(recorder, name, dims, level, source.tap, *_packed({**tags, VALUE: value}))
    else:
        operators.record_plain(recorder, name, dims, level, source.tap, *_packed(tags))


def step_in_graph(recorder: int | None, recording: bool, batch: Any, layout: Any, tags: Any, tap: str | None) -> bool:
    """Begin a step when the graph runs; False where that needs a graph break, since no operator can carry the engine's
    batch, and something is recorded, and the caller allows breaks."""
    import torch

    from dumper.adapters.traced import carried

    names, tensors, number_names, numbers = carried(batch)
    if recording and not (layout is None and (batch is None or len(tensors) > 0)) and _may_break():
        return False
    torch.ops.tensortap.step(recorder, tap, names, tensors, number_names, numbers, *_packed(tags))
    return True


def end_step_in_graph(recorder: int | None, tap: str | None) -> None:
    """End the step when the graph runs."""
    import torch

    torch.ops.tensortap.end_step(recorder, tap)


def count_in_graph(recorder: int | None, tap: str) -> None:
    """Count a tap when the graph runs."""
    import torch

    torch.ops.tensortap.count(recorder, tap)


def _packed(tags: dict[str, Any]) -> Packed:
    integer_keys: list[str] = []
    integers: list[int] = []
    float_keys: list[str] = []
    floats: list[float] = []
    tensor_keys: list[str] = []
    tensors: list[Any] = []
    others: list[str] = []
    for key, tag in tags.items():
        if _is_tensor(tag):
            tensor_keys.append(key)
            tensors.append(tag)
        elif type(tag) is int:
            integer_keys.append(key)
            integers.append(tag)
        elif type(tag) is float:
            float_keys.append(key)
            floats.append(tag)
        elif type(tag) is str:
            others += [key, TEXT, tag]
        elif type(tag) is bool:
            others += [key, TRUTH, "yes" if tag else ""]
        elif tag is None:
            others += [key, NOTHING, ""]
        elif isinstance(tag, (tuple, list)) and all(type(one) in _SCALARS for one in tag):
            others += [key, TEXT, str(tag)]
        else:
            others += [key, TEXT, tag.__class__.__name__]
    return integer_keys, integers, float_keys, floats, tensor_keys, tensors, others


_SCALARS = (str, bool, type(None), int, float)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _may_break() -> bool:
    """Whether the function that is traced may have graph breaks (no ``fullgraph=True``). Runs while it is traced, and
    what it returns is a constant of the graph."""
    try:
        convert: Any = sys.modules["torch._dynamo.symbolic_convert"]
        translator = convert.InstructionTranslator.current_tx()
        return not (translator.one_graph or getattr(translator, "error_on_graph_break", False))
    except Exception:
        return True


# What ``torch._dynamo.assume_constant_result`` does; to import it here would cost seconds.
setattr(_may_break, "_dynamo_marked_constant", True)  # noqa: B010

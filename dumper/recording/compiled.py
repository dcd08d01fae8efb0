"""The operators that taps leave in the graphs of ``torch.compile``, instead of a graph break.

Each has an ordered side effect, so that no pass drops or moves it; it runs the recorder when the graph runs. What
leaves them in a graph is in ``in_graph.py``.
"""

from __future__ import annotations

import sys

from dumper.values.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from typing import Any, ClassVar, Protocol

    class Recorder(Protocol):
        """The part of the recorder that the operator needs."""

        def submit_from_graph(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any]) -> None: ...

        def begin_step_from_graph(self, batch: Any, tags: Mapping[str, Any], tap: str | None) -> None: ...
        def end_step(self, tap: str | None) -> None: ...
        def count_tap(self, tap: str | None) -> None: ...


TEXT, TRUTH, NOTHING = "str", "bool", "none"
"""How a tag that travels as text is meant. Written down, since dynamo does not know the name of every type."""
_KINDS: dict[str, Callable[[str], Any]] = {TEXT: str, TRUTH: bool, NOTHING: lambda text: None}


def _never() -> bool:
    return False


class _NoFlags:
    """Of no torch."""

    _is_compiling_flag = False


class Tracing:
    """Whether the code that runs is being traced; asks torch once torch is there, and costs nothing before."""

    is_compiling: Callable[[], bool] = staticmethod(_never)
    by_dynamo: Callable[[], bool] = staticmethod(_never)
    """Whether dynamo traces. ``by_dynamo() or flags._is_compiling_flag`` is ``is_compiling()`` without the calls that
    it makes, for what runs between the kernels of a model. Dynamo does not come to the flag, on whose value the graph
    would depend."""
    flags: Any = _NoFlags
    recorders: ClassVar[MutableMapping[int, Recorder] | None] = None
    """By number, weakly: a graph can hold a number, but no object. None while the process has no torch."""

    @classmethod
    def number(cls, recorder: Recorder) -> int | None:
        """What graphs name a recorder by; None while the process has no torch."""
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "compiler") or not hasattr(torch, "library"):
            return None
        if cls.recorders is None:
            cls.recorders = cls._begin(torch)
        number = max(cls.recorders, default=-1) + 1
        cls.recorders[number] = recorder
        return number

    @classmethod
    def _begin(cls, torch: Any) -> MutableMapping[int, Recorder]:
        """Register the operator."""
        from weakref import WeakValueDictionary

        recorders: WeakValueDictionary[int, Recorder] = WeakValueDictionary()
        try:
            _register(torch, recorders)
        except (AttributeError, RuntimeError, TypeError):
            # A torch without effects on operators: taps in compiled code break the graph.
            return recorders
        cls.is_compiling = cls.by_dynamo = staticmethod(torch.compiler.is_compiling)
        if hasattr(torch.compiler, "_is_compiling_flag") and hasattr(torch.compiler, "is_dynamo_compiling"):
            cls.by_dynamo, cls.flags = staticmethod(torch.compiler.is_dynamo_compiling), torch.compiler
        return recorders


def _register(torch: Any, recorders: Mapping[int, Recorder]) -> None:
    from dumper.adapters.traced import batch_of

    # Integers and floats have lists of their own: one that changes between calls is a symbol while tracing and has no
    # text. So have tensors, whose values are there when the graph runs.
    tags = (
        "str[] integer_tags, SymInt[] integers, str[] float_tags, float[] floats, str[] tensor_tags, Tensor[] tensors, "
        "str[] other_tags"
    )
    batch = "str[] names, Tensor[] batch_tensors, str[] number_names, SymInt[] numbers"
    place = "int recorder, str name, str? dims, str? level, str? tap"

    def submit(recorder: int, name: str, dims: Any, level: Any, tap: Any, value: Any, tags: dict[str, Any]) -> None:
        target = recorders.get(recorder)
        if target is not None:
            target.submit_from_graph(Source.of(name, level, tap=tap), value, dims, tags)

    def record(value: Any, recorder: int, name: str, dims: Any, level: Any, tap: Any, *packed: Any) -> None:
        submit(recorder, name, dims, level, tap, value, _unpacked(*packed))

    def record_plain(recorder: int, name: str, dims: Any, level: Any, tap: Any, *packed: Any) -> None:
        tags = _unpacked(*packed)
        submit(recorder, name, dims, level, tap, tags.pop(VALUE, ValueOfCompiledCode()), tags)

    def step(recorder: int, tap: Any, names: Any, tensors: Any, number_names: Any, numbers: Any, *packed: Any) -> None:
        target = recorders.get(recorder)
        if target is not None:
            batch = batch_of(names, tensors, number_names, numbers)
            target.count_tap(tap)
            target.begin_step_from_graph(batch or None, _unpacked(*packed), tap)

    def end_step(recorder: int, tap: Any) -> None:
        target = recorders.get(recorder)
        if target is not None:
            target.count_tap(tap)
            target.end_step(tap)

    def count(recorder: int, tap: Any) -> None:
        target = recorders.get(recorder)
        if target is not None:
            target.count_tap(tap)

    def fake(*arguments: Any) -> None:
        """Tracing needs to know what comes out: nothing."""

    for function, schema in (
        (record, f"(Tensor value, {place}, {tags}) -> ()"),
        (record_plain, f"({place}, {tags}) -> ()"),
        (step, f"(int recorder, str? tap, {batch}, {tags}) -> ()"),
        (end_step, "(int recorder, str? tap) -> ()"),
        (count, "(int recorder, str? tap) -> ()"),
    ):
        operator = torch.library.custom_op(f"tensortap::{function.__name__}", function, mutates_args=(), schema=schema)
        operator.register_fake(fake)
        operator.register_effect(torch.library.EffectType.ORDERED)


VALUE = "\0value"
"""The tag under which a value that is no tensor travels."""


class _Traced:
    """What code that is traced right now has entered."""

    def __init__(self) -> None:
        self.tags: Mapping[str, Any] = {}
        """Of ``ctx`` blocks: when the graph runs, nobody enters these."""


TRACED = _Traced()


class ValueOfCompiledCode:
    """A value that a graph cannot carry; it is counted as lost."""


def _unpacked(
    integer_keys: list[str],
    integers: list[int],
    float_keys: list[str],
    floats: list[float],
    tensor_keys: list[str],
    tensors: list[Any],
    others: list[str],
) -> dict[str, Any]:
    """The tags of a call; of ``others`` key, type and text of each, three strings after another."""
    tags: dict[str, Any] = dict(zip(integer_keys, integers, strict=True))
    tags.update(zip(float_keys, floats, strict=True))
    for key, tensor in zip(tensor_keys, tensors, strict=True):
        tags[key] = _scalar_of(tensor)
    for key, kind, text in zip(others[::3], others[1::3], others[2::3], strict=True):
        tags[key] = _KINDS[kind](text)
    return tags


def _scalar_of(tensor: Any) -> Any:
    """A tensor as a tag."""
    if is_capturing(tensor):
        return type(tensor).__name__  # to read it would break the capture
    return tensor.item() if tensor.dim() == 0 else str(tensor)


def is_capturing(value: Any) -> bool:
    """Whether ``value`` is a CUDA tensor on a stream that is being captured into a graph."""
    try:
        if not getattr(value, "is_cuda", False):
            return False
    except Exception:
        return False  # a subclass that answers for itself
    import torch

    return bool(torch.cuda.is_current_stream_capturing())

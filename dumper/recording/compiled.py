"""Taps inside ``torch.compile``d code: an operator that the compiler keeps where it is, instead of a graph break.

While a function is traced, ``Tap.record`` and ``dumper.dump`` leave a call of ``torch.ops.tensortap.record`` in the
graph. The operator has an ordered side effect, so that no pass drops or moves it; it runs the recorder when the graph
runs. Gradients of such values are not recorded, and what the operator cannot carry (a value that is no tensor) ends in
a graph break.
"""

from __future__ import annotations

import sys

from dumper.values.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping
    from typing import Any, ClassVar, Protocol

    import torch

    class Recorder(Protocol):
        """The part of the recorder that the operator needs."""

        def submit_from_graph(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any]) -> None: ...


_KINDS: dict[str, Callable[[str], Any]] = {
    "float": float,
    "str": str,
    "bool": lambda text: text == "True",
    "NoneType": lambda text: None,
}


def _never() -> bool:
    return False


class Tracing:
    """Whether the code that runs is being traced; asks torch once torch is there, and costs nothing before."""

    is_compiling: Callable[[], bool] = staticmethod(_never)
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
        cls.is_compiling = staticmethod(torch.compiler.is_compiling)
        return recorders


def _register(torch: Any, recorders: Mapping[int, Recorder]) -> None:
    # Integers have a list of their own: one that changes between calls is a symbol while tracing and has no text.
    schema = (
        "(Tensor value, int recorder, str name, str? dims, str? level, str? tap, str[] integer_tags, "
        "SymInt[] integers, str[] other_tags) -> ()"
    )

    def record(
        value: Any, recorder: int, name: str, dims: Any, level: Any, tap: Any, keys: Any, integers: Any, rest: Any
    ) -> None:
        target = recorders.get(recorder)
        if target is not None:
            tags = {**dict(zip(keys, integers, strict=True)), **_decode_tags(rest)}
            target.submit_from_graph(Source.of(name, level, tap=tap), value, dims, tags)

    def fake(*arguments: Any) -> None:
        """Tracing needs to know what comes out: nothing."""

    operator = torch.library.custom_op("tensortap::record", record, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_effect(torch.library.EffectType.ORDERED)


def _decode_tags(tags: list[str]) -> dict[str, Any]:
    """Key, type and text of each tag, three strings after another."""
    triples = zip(tags[::3], tags[1::3], tags[2::3], strict=True)
    return {key: _KINDS.get(kind, str)(text) for key, kind, text in triples}


def record_in_graph(
    recorder: int | None, source: Source, value: torch.Tensor, dims: str | None, tags: dict[str, Any]
) -> None:
    """Traced, never run: leaves the operator in the graph."""
    import torch

    keys: list[str] = []
    integers: list[int] = []
    rest: list[str] = []
    for key, tag in tags.items():
        if type(tag) is int:
            keys.append(key)
            integers.append(tag)
        else:
            rest += [key, type(tag).__name__, str(tag)]
    torch.ops.tensortap.record(value, recorder, source.name, dims, source.level, source.tap, keys, integers, rest)


def is_capturing(value: Any) -> bool:
    """Whether ``value`` is a CUDA tensor on a stream that is being captured into a graph."""
    try:
        if not getattr(value, "is_cuda", False):
            return False
    except Exception:
        return False  # a subclass that answers for itself
    import torch

    return bool(torch.cuda.is_current_stream_capturing())

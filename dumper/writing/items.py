"""What the model's thread hands to the writer's thread; names, dims and tags in it are such as a file can hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from dumper.layout import TokenLayout
from dumper.memory.buffers import Slab
from dumper.memory.device_slabs import DeviceSlab
from dumper.memory.staging import Described, Staged
from dumper.rules.levels import Level
from dumper.values.dtypes import as_array
from dumper.values.fingerprint import SCHEME
from dumper.values.plain import UnrecordableError
from dumper.values.source import Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TagsKey = tuple[tuple[str, Any], ...]


class Description:
    """What many records share; made once for each combination and reused.

    A plain class with slots: it is touched for every record.
    """

    __slots__ = (
        "dims",
        "dtype",
        "encoded",
        "graph",
        "hashed",
        "level",
        "recompute",
        "shape",
        "source",
        "summed_bytes",
        "tags",
    )

    def __init__(
        self,
        source: Source,
        tags: TagsKey,
        dims: str | None,
        dtype: str | None,
        shape: tuple[int, ...] | None,
        level: Level,
        recompute: bool,
        graph: Mapping[str, str | int] | None = None,
        summed_bytes: int | None = None,
    ) -> None:
        self.source = source
        self.tags = tags
        self.dims = dims
        self.dtype = dtype
        self.shape = shape
        self.level = level
        """The level that the value has, which is not always what its source asks for."""
        self.recompute = recompute
        self.graph = graph
        """Of a value that a replay of a CUDA graph has left: what is known of the graph."""
        self.summed_bytes = summed_bytes
        """Of level ``hash``: the bytes of the tensor, where their sums come to the writer in their stead; else None."""
        self.hashed = level.kind == "hash" and dtype is not None
        """Whether the fingerprint of what comes to the writer is recorded."""
        self.encoded: Any = None
        """Belongs to the writer's thread: what it has worked out for this description."""

    def fields(self) -> dict[str, Any]:
        """The description as plain values, absent ones left out."""
        fields: dict[str, Any] = {"name": self.source.name}
        if self.tags:
            fields["tags"] = dict(self.tags)
        if self.dims is not None:
            fields["dims"] = self.dims
        if self.dtype is not None:
            fields["dtype"] = self.dtype
            fields["shape"] = list(self.shape or ())
        if self.level.kind != "full":
            fields["level"] = str(self.level)
        if self.level.kind == "hash":
            fields["fingerprint"] = SCHEME
        if self.source.stream != "value":
            fields["stream"] = self.source.stream
        if self.source.tap is not None:
            fields["tap"] = self.source.tap
        if self.recompute:
            fields["recompute"] = True
        if self.graph is not None:
            fields["graph"] = dict(self.graph)
        return fields


SmallValue: TypeAlias = tuple[Description, Slab | DeviceSlab, int, int, int | None]
"""A value in a slab: description, slab, offset, number of bytes, step. A tuple, since there is one for every small
record and an object of a class takes the model's thread three times as long to make."""

SmallValues: TypeAlias = list[SmallValue]
"""Some that follow on one another in the same slab."""

SmallRecord: TypeAlias = SmallValue | tuple[Description, bytes | memoryview, int | None]
"""What frames are made of in batches: such a value, or description, bytes and step of another."""


@dataclass(frozen=True)
class Submission:
    """One value to be written: its bytes, or a copy that is still on its way."""

    description: Description
    data: bytes | memoryview | Staged
    step: int | None
    reserved: int
    """Bytes of the memory budget to give back."""


@dataclass(frozen=True)
class ManyValues:
    """Several values that were copied together."""

    values: tuple[tuple[Description, int, int], ...]
    """Description, offset in the copy and number of bytes of each."""
    data: bytes | memoryview | Staged
    step: int | None
    reserved: int
    """Bytes of the memory budget to give back."""


@dataclass(frozen=True)
class Watched:
    """Statistics of a value of which less is recorded: for ``on_nan`` alone, which looks at all of it."""

    data: bytes | memoryview | Staged
    step: int | None


@dataclass(frozen=True)
class StagedLayout:
    """A token layout that needs values which are on their way from a device."""

    parts: Mapping[str, Described]
    build: Callable[[dict[str, npt.NDArray[np.int64]]], TokenLayout]

    @property
    def is_there(self) -> bool:
        """Whether ``wait`` would not block. For the writer's thread."""
        return all(isinstance(part.data, bytes) or part.data.is_there for part in self.parts.values())

    def wait(self) -> TokenLayout:
        """The layout; blocks until the values are there. To be called once, on the writer's thread."""
        return self.build({name: _flat(part) for name, part in self.parts.items()})


def _flat(part: Described) -> npt.NDArray[np.int64]:
    assert part.dtype is not None
    if isinstance(part.data, bytes):
        return as_array(part.data, part.dtype, (-1,)).astype("i8")
    try:
        return as_array(part.data.wait(), part.dtype, (-1,)).astype("i8")
    finally:
        part.data.release()


@dataclass(frozen=True)
class BeginStep:
    """A step; its layout may still be on its way from a device."""

    number: int
    layout: TokenLayout | StagedLayout | None
    tags: Mapping[str, Any]
    updates: int = 0
    """How often an optimizer has updated weights before."""


@dataclass(frozen=True)
class InstalledTaps:
    """Taps that the patcher put into a module."""

    module: str
    taps: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class AddedAxes:
    """Axes of the parallel layout that became known after the header was written."""

    axes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Barrier:
    """``reached`` is set when all that was handed over before is in the file."""

    reached: threading.Event


@dataclass(frozen=True)
class Stop:
    """The end: complete the file."""


Item: TypeAlias = (
    SmallValue
    | SmallValues
    | Submission
    | ManyValues
    | Watched
    | BeginStep
    | InstalledTaps
    | AddedAxes
    | Barrier
    | Stop
)


def count_values(items: Sequence[Item]) -> int:
    """How many values are to be recorded of these."""
    return sum(map(_count, items))


def _count(item: Item) -> int:
    if isinstance(item, ManyValues):
        return len(item.values)
    return len(item) if isinstance(item, list) else isinstance(item, tuple | Submission)


LONGEST_TEXT = 1 << 16
"""Characters of a name, of dims and of a tag."""
_PLAIN = frozenset({str, float, bool, type(None)})


def as_scalars(tags: Mapping[str, Any]) -> TagsKey:
    """Tags as scalars, in their order. Raises UnrecordableError for text that is too long."""
    if not tags:
        return ()
    scalars = tuple((str(key), value if type(value) in _PLAIN else _as_scalar(value)) for key, value in tags.items())
    for key, value in scalars:
        if type(value) is str:
            check_text(f"tag {key}", value)
    return scalars


def check_text(what: str, text: object) -> None:
    """Raises UnrecordableError for what is no text, or more of it than describes a value."""
    if not isinstance(text, str):
        raise UnrecordableError(f"its {what} is no text but a {type(text).__name__}; give a str")
    if len(text) > LONGEST_TEXT:
        raise UnrecordableError(f"its {what} has {len(text)} characters; {LONGEST_TEXT} is the most")


def _as_scalar(value: Any) -> int | float | str | bool | None:
    """A tag as a scalar: numbers of numpy and torch as Python's, everything else as text."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            plain: int | float | str | bool = kind(value)
            # The format has integers of 64 bits.
            return plain if kind is not int or -(1 << 63) <= plain < 1 << 63 else str(plain)  # type: ignore[operator]
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        number = item()
        return _as_scalar(number) if isinstance(number, int | float | bool) else str(number)
    return str(value)

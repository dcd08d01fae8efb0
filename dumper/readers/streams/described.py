"""What many records share, decoded once: the descriptors of an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from dumper.rules.levels import Level


class Described(Struct, frozen=True):
    """One descriptor (``dumper/format/index.py``), with the defaults of what it does not say."""

    name: str
    tags: Mapping[str, Any]
    tap: str | None
    kind: str
    level: str
    dtype: str | None
    shape: tuple[int, ...] | None
    dims: str | None
    stream: str
    recompute: bool
    graph: Mapping[str, Any] | None
    fingerprint: str | None
    sampled_rows: range | None


def described(descriptor: Mapping[str, Any]) -> Described:
    """The descriptor, checked by ``dumper.format.index.check_descriptor``, as a value."""
    text = str(descriptor.get("level", "full"))
    level = text.partition("(")[0]
    shape = descriptor.get("shape")
    graph = descriptor.get("graph")
    dtype = descriptor.get("dtype")
    return Described(
        name=str(descriptor.get("name", "")),
        tags=descriptor.get("tags", {}),
        tap=descriptor.get("tap"),
        kind="value" if dtype is None else "tensor",
        level=level,
        dtype=dtype,
        shape=None if shape is None else tuple(shape),
        dims=descriptor.get("dims"),
        stream=str(descriptor.get("stream", "value")),
        recompute=bool(descriptor.get("recompute", False)),
        graph=graph if isinstance(graph, dict) else None,
        fingerprint=descriptor.get("fingerprint"),
        sampled_rows=range(shape[0])[Level.parse(text).row_slice] if level == "sample" and shape else None,
    )

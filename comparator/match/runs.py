"""What the comparator needs of a run: a structural view of what ``dumper.open_run`` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from dumper.layout import TokenLayout


class RecordView(Protocol):
    """One record of a run; nothing of its payload is read until ``array`` or ``value`` is asked for."""

    @property
    def name(self) -> str: ...
    @property
    def step(self) -> int | None: ...
    @property
    def rank(self) -> int: ...
    @property
    def tags(self) -> Mapping[str, Any]: ...
    @property
    def occurrence(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def shape(self) -> tuple[int, ...] | None: ...
    @property
    def dims(self) -> str | None: ...
    @property
    def stream(self) -> str: ...
    @property
    def recompute(self) -> bool: ...
    @property
    def value(self) -> Any: ...
    @property
    def statistics(self) -> Mapping[str, Any] | None: ...
    @property
    def fingerprint(self) -> str | None: ...
    def array(self) -> npt.NDArray[Any]: ...


class HeaderView(Protocol):
    """What a rank says about itself."""

    @property
    def parallel(self) -> Mapping[str, tuple[int, int]]: ...


class RunView(Protocol):
    """A recorded run: one of ours or a directory of SGLang's ``.pt`` files."""

    @property
    def path(self) -> Path: ...
    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def missing_ranks(self) -> tuple[int, ...]: ...
    @property
    def headers(self) -> Mapping[int, HeaderView]: ...
    @property
    def steps(self) -> tuple[int, ...]: ...
    @property
    def records(self) -> Sequence[RecordView]: ...
    @property
    def silent_taps(self) -> Sequence[str]: ...
    @property
    def problems(self) -> Sequence[Any]: ...
    def layout(self, step: int, rank: int) -> TokenLayout | None: ...


def parallel_layout(run: RunView) -> dict[int, dict[str, tuple[int, int]]]:
    """Per rank its coordinates on every recorded axis: axis to ``(rank, size)``.

    An axis that only the token layouts name (a run that was recorded without an engine that knows its ranks) is
    taken from the first layout of each rank.
    """
    return {
        rank: {
            **_axes_of_layouts(run, rank),
            **{axis: (int(at), int(size)) for axis, (at, size) in header.parallel.items()},
        }
        for rank, header in run.headers.items()
    }


def _axes_of_layouts(run: RunView, rank: int) -> dict[str, tuple[int, int]]:
    for step in run.steps:
        layout = run.layout(step, rank)
        if layout is not None:
            named = (layout.data_parallel, layout.context_parallel)
            return {place.axis: (place.rank, place.size) for place in named if place is not None}
    return {}


def file_name(record: RecordView, number: int) -> str:
    """The name of a record in the form of SGLang's dump files, which ``--filter`` searches.

    A record that comes from such a file gives the file's own name (attribute ``filename``).
    """
    own = getattr(record, "filename", None)
    if isinstance(own, str):
        return own
    parts = [
        f"step={record.step}",
        f"rank={record.rank}",
        f"dump_index={number}",
        f"name={record.name}",
        f"recompute_status={'recompute' if record.recompute else 'disabled'}",
        *(f"{key}={value}" for key, value in record.tags.items()),
    ]
    return "___".join(parts)

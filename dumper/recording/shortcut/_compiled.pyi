from collections.abc import Callable, Mapping
from typing import Any, Self

class Shortcut:
    def __init__(
        self,
        types: tuple[type, ...],
        classes: tuple[type, ...],
        steps: Any,
        plans: dict[Any, Any],
        status: Any,
        next_number: Callable[[], int],
        writer: Any,
        lanes: dict[Any, Any] | None,
        graph_task: Callable[[], int],
        is_tracing: Callable[[], bool],
        current_stream: Callable[[int], int],
        current_device: Callable[[], int],
        is_capturing: Callable[[], bool] | None,
        prepare: Callable[[str | None, Any, int, int, int, Any], tuple[Any, int, int, Any] | None] | None,
        exchange: object,
        functions: tuple[int, int, int, int, int, int],
        copy: int,
        launch: int,
        measure: int,
        measured_bytes: int,
        overhead: int,
        alignment: int,
        host_slab_bytes: int,
        device_slab_bytes: int,
        counted_at: int,
    ) -> None: ...
    def submit(self, source: Any, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None, /) -> bool:
        """Record a value as one before it; False, with nothing done, where that cannot be."""
    def close(self) -> None:
        """Have ``submit`` return False from now on."""

class Way:
    """Where a recorder keeps its shortcut for the calls of its taps."""

    def take(self, shortcut: Shortcut | None, compiling: dict[str, Any], tags: type, /) -> None:
        """Have them go through ``shortcut`` while ``compiling["_is_compiling_flag"]`` and ``tags.in_use`` are False."""

class TapCall:
    """What a class derives from whose ``__call__`` records: calls that come as others before do not get there."""

    fired: int
    def __new__(cls, way: Way, source: Any, /) -> Self: ...

"""What a run and its records are where a kind of recording has nothing special: it overrides what it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from dumper.reading.columns import columns_of_records
from dumper.reading.headers import largest_world, ranks_without_file, silent_taps
from dumper.reading.named_files import NamedFile
from dumper.reading.protocol import (
    ArraysInFile,
    GraphCoverage,
    Record,
    RecordColumns,
    Run,
    TapCoverage,
    Written,
)
from dumper.storage.places import StoredPath

if TYPE_CHECKING:
    import numpy as np
    import polars

    from dumper.layout import TokenLayout


class RecordBase:
    """A ``Record`` without ``name``, ``step``, ``rank``, ``tags``, ``occurrence``, ``order``, ``dtype``, ``shape``,
    ``nbytes``, ``source``, ``value``, ``is_intact``, ``array`` and ``tensor``, which every kind of recording has of its
    own."""

    __slots__ = ()

    @property
    def tap(self) -> str | None:
        return None

    @property
    def kind(self: Record) -> str:
        return "value" if self.dtype is None else "tensor"

    @property
    def level(self) -> str:
        return "full"

    @property
    def dims(self) -> str | None:
        return None

    @property
    def stream(self) -> str:
        return "value"

    @property
    def recompute(self) -> bool:
        return False

    @property
    def graph(self) -> Mapping[str, Any] | None:
        return None

    @property
    def sampled_rows(self) -> range | None:
        return None

    @property
    def filename(self) -> str | None:
        return None

    @property
    def named_file(self) -> NamedFile | None:
        return None

    @property
    def error(self) -> str | None:
        return None

    @property
    def statistics(self) -> Mapping[str, float | int] | None:
        return None

    @property
    def fingerprint(self) -> str | None:
        return None

    @property
    def fingerprint_scheme(self) -> str | None:
        return None

    @property
    def checksums(self) -> tuple[str, tuple[tuple[int, int], ...]] | None:
        return None

    @property
    def shortened(self) -> str | None:
        return None

    def lazy_array(self) -> npt.NDArray[Any] | None:
        return None

    def let_go(self, first: int = 0, stop: int | None = None) -> None:
        pass

    def _repr_html_(self: Record) -> str:
        from dumper.reading.listing import record_html

        return record_html(self)


class RunBase:
    """A ``Run`` without ``path``, ``ranks``, ``headers``, ``steps``, ``records`` and ``problems``, which every kind of
    recording has of its own."""

    @property
    def world_size(self: Run) -> int:
        return largest_world(self.headers)

    @property
    def missing_ranks(self: Run) -> tuple[int, ...]:
        return ranks_without_file(self.headers)

    @property
    def taps(self) -> Sequence[TapCoverage]:
        return ()

    @property
    def silent_taps(self: Run) -> tuple[str, ...]:
        return silent_taps(self.taps)

    @property
    def cuda_graphs(self) -> Sequence[GraphCoverage]:
        return ()

    @property
    def outside_steps(self) -> int:
        """Values that came outside any step and were counted alone."""
        return 0

    @property
    def losses(self) -> int:
        return 0

    @property
    def has_named_files(self) -> bool:
        return False

    @property
    def is_stored(self: Run) -> bool:
        return isinstance(self.path, StoredPath)

    @property
    def changed_files(self) -> Sequence[str]:
        return ()

    def written(self) -> Written | None:
        return None

    def read_ahead(self) -> None:
        pass

    def expect(self, records: Iterable[Record]) -> None:
        pass

    def read_together(self, records: Iterable[Record]) -> None:
        pass

    def arrays_in_files(self, numbers: npt.NDArray[np.int64], most: int) -> Iterable[ArraysInFile]:
        return ()

    def updates(self, step: int) -> int:
        """How often an optimizer had updated weights before a step; 0 where nothing tells."""
        return 0

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        return None

    def select(
        self: Run, *, name: str | None = None, step: int | None = None, rank: int | None = None, **tags: Any
    ) -> Sequence[Record]:
        return [
            record
            for record in self.records
            if (name is None or record.name == name)
            and (step is None or record.step == step)
            and (rank is None or record.rank == rank)
            and all(key in record.tags and record.tags[key] == value for key, value in tags.items())
        ]

    def columns(self: Run) -> RecordColumns:
        """Each record is a kind of its own."""
        return columns_of_records(self.records)

    def to_polars(self: Run) -> polars.DataFrame:
        from dumper.reading.columns import table_of

        return table_of(self.records)

    def _repr_html_(self: Run) -> str:
        from dumper.reading.listing import run_html

        return run_html(self)

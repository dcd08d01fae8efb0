"""A run directory: one stream of frames per rank; its records one by one, and as the columns that comparisons group by.
Neither torch nor polars is imported before it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dumper.format.frames import VERSION, FormatError
from dumper.format.index import Index
from dumper.format.layouts import decode_layout
from dumper.layout import TokenLayout
from dumper.readers.streams.accounts import (
    Account,
    brought_up_to_date,
    missing_records,
    mixed_runs,
    problems_of_account,
    problems_of_graphs,
    repairs,
)
from dumper.readers.streams.rank_records import RankRecords, Records, arrays_in_files
from dumper.readers.streams.record import StoredRecord
from dumper.readers.streams.segments import Segment, StoredSegment
from dumper.reading.base import RunBase
from dumper.reading.headers import RankHeader, ranks_missing
from dumper.reading.protocol import (
    ArraysInFile,
    GraphCoverage,
    Problem,
    Record,
    RecordColumns,
    RunError,
    TapCoverage,
    Written,
)
from dumper.storage.places import Place, StoredPath

if TYPE_CHECKING:
    import polars


class MalformedLayoutError(FormatError, RunError):
    """A token layout that makes no sense: damage to the bytes, and an error of the run."""


class RunDirectory(RunBase):
    """A recording: a directory with one stream per rank."""

    def __init__(
        self,
        path: Place,
        ranks: Mapping[int, RankRecords],
        accounts: Sequence[Account],
        problems: Sequence[Problem],
    ) -> None:
        """``problems``: those of files that are not read."""
        self.path = path
        self._ranks = ranks
        self._accounts_as_counted = accounts
        """What the processes counted, as it stands in their files."""
        self._problems_of_files = problems
        self.ranks = tuple(sorted(ranks))
        self._layouts: dict[tuple[int, int], TokenLayout | None] = {}
        self._decoded: dict[int, TokenLayout] = {}
        """By the identity of what they are made from: ranks that say the same share it."""
        self._records = Records(ranks)
        self.records: Sequence[StoredRecord] = self._records

    @functools.cached_property
    def headers(self) -> Mapping[int, RankHeader]:
        """By rank. A rank whose header is damaged has one that knows the rank alone."""
        self._expect(lambda index: index.others)
        return {rank: part.header for rank, part in self._ranks.items()}

    def expect(self, records: Iterable[Record]) -> None:
        """These records will be read, in about this order: where the run is on object storage, they are read ahead."""
        if self.is_stored:
            self._read_ahead(record.frame_place for record in records if isinstance(record, StoredRecord))

    def arrays_in_files(self, numbers: npt.NDArray[np.int64], most: int) -> Iterator[ArraysInFile]:
        return arrays_in_files(self._records, numbers, most)

    def _expect(self, frames_of: Callable[[Index], npt.NDArray[np.uint64]]) -> None:
        if self.is_stored:
            segments = (segment for _, part in sorted(self._ranks.items()) for segment in part.segments)
            self._read_ahead(
                (one, offset) for one in segments for offset in frames_of(one.index).tolist() if offset not in one.told
            )

    def _read_ahead(self, places: Iterable[tuple[Segment, int]]) -> None:
        from dumper.storage.ranges import Reads

        assert isinstance(self.path, StoredPath)
        assert isinstance(self.path.store, Reads)
        self.path.store.expect(
            (segment.stored, *segment.extent(offset))
            for segment, offset in places
            if isinstance(segment, StoredSegment)
        )

    @functools.cached_property
    def steps(self) -> tuple[int, ...]:
        """Numbers of all steps that were begun or hold a record."""
        self._expect(lambda index: index.steps)
        return tuple(sorted(set().union(*(part.distinct_steps() for part in self._ranks.values()))))

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        """The token layout of a step on a rank, None when none was recorded. Raises FormatError when it is
        malformed."""
        if (step, rank) not in self._layouts:
            self._layouts[step, rank] = self._decoded_layout(step, rank)
        return self._layouts[step, rank]

    def updates(self, step: int) -> int:
        """How often an optimizer had updated weights before a step, as the first rank says that has the step."""
        for rank in self.ranks:
            meta = self._ranks[rank].steps.get(step)
            if meta is not None:
                count = meta.get("updates", 0)
                return count if isinstance(count, int) else 0
        return 0

    def _decoded_layout(self, step: int, rank: int) -> TokenLayout | None:
        part = self._ranks.get(rank)
        encoded = part.steps.get(step, {}).get("layout") if part is not None else None
        if encoded is None:
            return None
        if (known := self._decoded.get(id(encoded))) is not None:
            return known
        try:
            found = self._decoded[id(encoded)] = decode_layout(encoded)
            return found
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise MalformedLayoutError(
                f"{self.path}: the token layout of step {step}, rank {rank} is malformed: {error}"
            ) from error

    def select(
        self, *, name: str | None = None, step: int | None = None, rank: int | None = None, **tags: Any
    ) -> list[StoredRecord]:
        """The records with this name, step, rank and these tags, in order."""
        parts = (part for number, part in sorted(self._ranks.items()) if rank is None or number == rank)
        return [record for part in parts for record in part.select(name, step, tags)]

    @functools.cached_property
    def taps(self) -> Sequence[TapCoverage]:
        """Every tap that was installed on a rank, and how often it fired there."""
        return [tap for _, part in sorted(self._ranks.items()) for tap in part.taps()]

    @functools.cached_property
    def cuda_graphs(self) -> Sequence[GraphCoverage]:
        """What was recorded of CUDA graphs, one entry for each rank that had some and came to an orderly end."""
        found = (part.cuda_graphs() for _, part in sorted(self._ranks.items()))
        return [graphs for graphs in found if graphs is not None]

    @property
    def losses(self) -> int:
        """Values that were handed to the dumper and are not in the run, as far as is known."""
        missing = sum(missing for _, missing in self._missing_records.values())
        return sum(account.lost for account in self._accounts) + missing

    @functools.cached_property
    def _counts(self) -> dict[int, int]:
        return {rank: sum(len(segment.index) for segment in part.segments) for rank, part in self._ranks.items()}

    @functools.cached_property
    def _accounts(self) -> list[Account]:
        return brought_up_to_date(self._accounts_as_counted, self._counts)

    @functools.cached_property
    def _missing_records(self) -> dict[int, tuple[int, int]]:
        counts = self._counts
        orders = {
            rank: 1 + max(int(segment.index.columns["order"].max()) for segment in part.segments if len(segment.index))
            for rank, part in self._ranks.items()
            if counts[rank]
        }
        return missing_records(self._accounts, counts, orders)

    @functools.cached_property
    def problems(self) -> Sequence[Problem]:
        """Everything about the run that its reader should know before trusting it."""
        self._expect(lambda index: index.others)
        found: list[Problem] = [*self._problems_of_files, *self._mixed_runs()]
        for rank, part in sorted(self._ranks.items()):
            versions = {meta.get("version") for meta in part.of_kind("header")}
            if later := [version for version in versions if isinstance(version, int) and version > VERSION]:
                message = f"rank {rank} was written in version {later[0]} of the format; this tensortap reads {VERSION}"
                found.append(Problem("unreadable", message))
        found += ranks_missing(self.missing_ranks, self.world_size, self.ranks)
        self._expect(lambda index: index.steps)
        for rank, part in sorted(self._ranks.items()):
            # Reading these may find damage.
            _ = (part.others, part.steps)
            for segment in part.segments:
                found += segment.problems
            found += part.problems
            if part.segments and not part.segments[-1].complete:
                found.append(Problem("unclosed", f"rank {rank} did not end in order; what reached the file is here"))
            if part.segments and (step := part.broken_off) is not None:
                message = f"rank {rank} ended in the middle of step {step}; what the pass had left to record is missing"
                found.append(Problem("unclosed", message))
            found += repairs(f"the file of rank {rank}", part.of_kind("repaired"))
        for rank, (written, missing) in self._missing_records.items():
            message = f"rank {rank}: {written} records were written, and {missing} of them are not in its files"
            found.append(Problem("missing_records", message))
        for account in self._accounts:
            found += problems_of_account(account)
        found += [problem for graphs in self.cuda_graphs for problem in problems_of_graphs(graphs)]
        if not len(self.records):
            found.append(Problem("empty", f"{self.path} holds no records{self._why_empty()}"))
        return found

    def _mixed_runs(self) -> list[Problem]:
        run_ids: dict[int, set[str]] = {}
        sizes: dict[int, int] = {}
        for rank, part in sorted(self._ranks.items()):
            headers = part.of_kind("header")
            run_ids.setdefault(rank, set()).update(str(meta["run"]) for meta in headers if meta.get("run"))
            if headers:
                sizes[rank] = self.headers[rank].world_size
        for account in self._accounts:
            if account.run_id is not None and account.counts["written"]:
                run_ids.setdefault(account.rank, set()).add(account.run_id)
        return mixed_runs(run_ids, sizes)

    @property
    def outside_steps(self) -> int:
        return sum(account.counts["outside_steps"] for account in self._accounts)

    def _why_empty(self) -> str:
        held = sum(account.counts["held_back"] for account in self._accounts)
        outside = self.outside_steps
        if held:
            return f": {held} values were held back, since on_nan waited for a NaN or infinity that did not come"
        if outside:
            return f": {outside} values came outside any step; TENSORTAP_OUTSIDE_STEPS=record records them too"
        return ""

    @property
    def changed_files(self) -> Sequence[str]:
        """In words, which files others have changed since the run was opened: what was read of them may be neither what
        they held nor what they hold."""
        segments = (segment for _, part in sorted(self._ranks.items()) for segment in part.segments)
        return [changed for segment in segments if (changed := segment.changed) is not None]

    def written(self) -> Written:
        """How far the run had come when it was opened."""
        from dumper.readers.streams.following import written

        return written(self.path, self._ranks, self._accounts_as_counted, self.world_size)

    def __repr__(self) -> str:
        from dumper.reading.listing import run_repr

        return run_repr(self)

    def columns(self) -> RecordColumns:
        """All records as columns; those that share a descriptor in the index of a file are of one kind."""
        return stream_columns((rank, one) for rank, part in sorted(self._ranks.items()) for one in part.segments)

    def to_polars(self) -> polars.DataFrame:
        """The index as a table: one row per record (``dumper/reading/columns.py``)."""
        from dumper.readers.streams.index_table import index_table

        return index_table((rank, segment) for rank, part in sorted(self._ranks.items()) for segment in part.segments)


def stream_columns(segments: Iterable[tuple[int, Segment]]) -> RecordColumns:
    """All records of (rank, segment) pairs, in order."""
    parts = list(segments)
    total = sum(len(segment.index) for _, segment in parts)
    kind, ranks = np.empty(total, np.int32), np.empty(total, np.int32)
    step, occurrence = np.empty(total, np.int64), np.empty(total, np.uint32)
    kinds: list[StoredRecord] = []
    known: dict[int, npt.NDArray[np.int32]] = {}
    at = 0
    for rank, segment in parts:
        columns, end = segment.index.columns, at + len(segment.index)
        # Descriptors that ranks share are one object.
        descriptors = segment.index.descriptors
        numbers = known.setdefault(id(descriptors), np.full(len(descriptors), -1, np.int32))
        firsts = _first_rows(segment.index)
        fresh = np.flatnonzero((firsts >= 0) & (numbers < 0))
        numbers[fresh] = np.arange(len(kinds), len(kinds) + len(fresh))
        kinds.extend(StoredRecord(segment, row, rank) for row in firsts[fresh].tolist())
        kind[at:end] = numbers[columns["descriptor"]]
        ranks[at:end] = rank
        step[at:end] = columns["step"]
        occurrence[at:end] = columns["occurrence"]
        at = end
    return RecordColumns(kinds, kind, ranks, step, occurrence)


def _first_rows(index: Index) -> npt.NDArray[np.int64]:
    """The first record of every descriptor; -1 where it has none."""
    found = np.full(len(index.descriptors), -1, np.int64)
    # Of several values for one place, the last one stays.
    found[index.columns["descriptor"][::-1]] = np.arange(len(index))[::-1]
    return found

"""A run directory: one stream of frames per rank. Neither torch nor polars is imported before it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dumper.format import frames
from dumper.format.frames import VERSION, FormatError
from dumper.format.index import NO_STEP, Index
from dumper.format.layouts import decode_layout
from dumper.format.run_files import MOST_RANKS, RANK_FILE
from dumper.layout import TokenLayout
from dumper.readers.streams.accounts import (
    Account,
    brought_up_to_date,
    missing_records,
    mixed_runs,
    problems_of_account,
    problems_of_graphs,
    read_accounts,
    repairs,
)
from dumper.readers.streams.metadata import read_coverage, read_graph_coverage, read_header
from dumper.readers.streams.record import StoredRecord
from dumper.readers.streams.segments import Segment, StoredSegment, open_segment
from dumper.reading.headers import RankHeader, largest_world, ranks_missing, ranks_without_file, silent_taps
from dumper.reading.protocol import Alike, GraphCoverage, Problem, RunError, TapCoverage
from dumper.storage.files import each
from dumper.storage.places import Place, StoredPath
from tensortap.progress import Advance, Progress, silent

if TYPE_CHECKING:
    import polars


class MalformedLayoutError(FormatError, RunError):
    """A token layout that makes no sense: damage to the bytes, and an error of the run."""


class Records(Sequence[StoredRecord]):
    """Records by rank and order, made when they are asked for."""

    def __init__(self, ranks: Mapping[int, RankRecords]) -> None:
        self._parts = [(rank, segment) for rank, part in sorted(ranks.items()) for segment in part.segments]
        self._starts = np.cumsum([0, *(len(segment.index) for _, segment in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        rank, segment = self._parts[part]
        return StoredRecord(segment, int(index - self._starts[part]), rank)

    def __iter__(self) -> Iterator[StoredRecord]:
        for rank, segment in self._parts:
            for row in range(len(segment.index)):
                yield StoredRecord(segment, row, rank)


@dataclass
class RankRecords:
    """The segments of one rank, and what is read from them on demand."""

    rank: int
    segments: list[Segment]
    problems: list[Problem] = field(default_factory=list)

    @functools.cached_property
    def others(self) -> list[tuple[str, dict[str, Any]]]:
        """Kind and metadata of every frame that is neither record, step nor index."""
        found = []
        for segment in self.segments:
            for offset in segment.index.others.tolist():
                try:
                    frame = segment.frame(offset)
                    found.append((frame.kind, frames.decode_meta(frame.meta)))
                except FormatError as error:
                    self.problems.append(Problem("corrupted", f"{segment.path.name}: {error}"))
        return found

    @functools.cached_property
    def steps(self) -> dict[int, dict[str, Any]]:
        """Metadata of the steps."""
        found: dict[int, dict[str, Any]] = {}
        for segment in self.segments:
            for offset in segment.index.steps.tolist():
                try:
                    meta = segment.meta(offset)
                    found[int(meta["step"])] = meta
                except (FormatError, KeyError, TypeError, ValueError) as error:
                    self.problems.append(Problem("corrupted", f"{segment.path.name}: a step cannot be read: {error}"))
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [meta for found, meta in self.others if found == kind]


class RunDirectory:
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
        self.parts = ranks
        """What the files of each rank hold."""
        self.accounts = accounts
        """What the processes counted, as it stands in their files."""
        self._accounts_as_counted = accounts
        self._problems_of_files = problems
        self.ranks = tuple(sorted(ranks))
        self._layouts: dict[tuple[int, int], TokenLayout | None] = {}
        self.records: Sequence[StoredRecord] = Records(ranks)

    @functools.cached_property
    def headers(self) -> Mapping[int, RankHeader]:
        """By rank. A rank whose header is damaged has one that knows the rank alone."""
        self._expect(lambda index: index.others)
        return {rank: _header(part) for rank, part in self._ranks.items()}

    def expect(self, records: Iterable[StoredRecord]) -> None:
        """These records will be read, in about this order: where the run is on object storage, they are read ahead."""
        if isinstance(self.path, StoredPath):
            self._read_ahead(record.frame_place for record in records)

    def _expect(self, frames_of: Callable[[Index], npt.NDArray[np.uint64]]) -> None:
        if isinstance(self.path, StoredPath):
            segments = (segment for _, part in sorted(self._ranks.items()) for segment in part.segments)
            self._read_ahead((one, offset) for one in segments for offset in frames_of(one.index).tolist())

    def _read_ahead(self, places: Iterable[tuple[Segment, int]]) -> None:
        from dumper.storage.ranges import Reads

        assert isinstance(self.path, StoredPath)
        assert isinstance(self.path.store, Reads)
        self.path.store.expect(
            (segment.stored, *segment.extent(offset))
            for segment, offset in places
            if isinstance(segment, StoredSegment)
        )

    @property
    def world_size(self) -> int:
        """The largest world size that a rank knows of, and at least the number of ranks there are."""
        return largest_world(self.headers)

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """Ranks without a file."""
        return ranks_without_file(self.headers)

    @functools.cached_property
    def steps(self) -> tuple[int, ...]:
        """Numbers of all steps that were begun or hold a record."""
        numbers: set[int] = set()
        self._expect(lambda index: index.steps)
        for part in self._ranks.values():
            numbers.update(part.steps)
            for segment in part.segments:
                # For the values alone, numpy.unique imports numpy.ma.
                distinct, _ = np.unique(segment.index.columns["step"], return_counts=True)
                numbers.update(distinct.tolist())
        return tuple(sorted(numbers - {NO_STEP}))

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        """The token layout of a step on a rank, None when none was recorded. Raises FormatError when it is
        malformed."""
        if (step, rank) not in self._layouts:
            self._layouts[step, rank] = self._decoded_layout(step, rank)
        return self._layouts[step, rank]

    def _decoded_layout(self, step: int, rank: int) -> TokenLayout | None:
        part = self._ranks.get(rank)
        encoded = part.steps.get(step, {}).get("layout") if part is not None else None
        if encoded is None:
            return None
        try:
            return decode_layout(encoded)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise MalformedLayoutError(
                f"{self.path}: the token layout of step {step}, rank {rank} is malformed: {error}"
            ) from error

    def select(
        self, *, name: str | None = None, step: int | None = None, rank: int | None = None, **tags: Any
    ) -> list[StoredRecord]:
        """The records with this name, step, rank and these tags, in order."""
        found = []
        for number, part in sorted(self._ranks.items()):
            if rank is not None and number != rank:
                continue
            for segment in part.segments:
                found += [StoredRecord(segment, row, number) for row in _matching_rows(segment, name, step, tags)]
        return found

    @functools.cached_property
    def taps(self) -> Sequence[TapCoverage]:
        """Every tap that was installed on a rank, and how often it fired there."""
        return [tap for rank, part in sorted(self._ranks.items()) for tap in _coverage(rank, part)]

    @property
    def silent_taps(self) -> tuple[str, ...]:
        """Taps that were installed and fired on no rank, with their place in the source."""
        return silent_taps(self.taps)

    @functools.cached_property
    def cuda_graphs(self) -> Sequence[GraphCoverage]:
        """What was recorded of CUDA graphs, one entry for each rank that had some and came to an orderly end."""
        found = (read_graph_coverage(rank, part.of_kind("coverage")) for rank, part in sorted(self._ranks.items()))
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

    def _why_empty(self) -> str:
        held = sum(account.counts["held_back"] for account in self._accounts)
        outside = sum(account.counts["outside_steps"] for account in self._accounts)
        if held:
            return f": {held} values were held back, since on_nan waited for a NaN or infinity that did not come"
        if outside:
            return f": {outside} values came outside any step; TENSORTAP_OUTSIDE_STEPS=record records them too"
        return ""

    def __repr__(self) -> str:
        from dumper.reading.listing import run_repr

        return run_repr(self)

    def _repr_html_(self) -> str:
        from dumper.reading.notebook import run_html

        return run_html(self)

    def alike(self) -> Iterator[Alike]:
        """All records, those that share a descriptor in the index of a file together."""
        for rank, part in sorted(self._ranks.items()):
            for segment in part.segments:
                yield from _alike(segment, rank)

    def to_polars(self) -> polars.DataFrame:
        """The index as a table: one row per record (``dumper/reading/table.py``)."""
        from dumper.readers.streams.index_table import index_table

        return index_table((rank, segment) for rank, part in sorted(self._ranks.items()) for segment in part.segments)


def holds_streams(path: Place) -> bool:
    """Whether a directory holds the files of a rank. A rank whose every value was lost has counts and no records."""
    return any(RANK_FILE.fullmatch(file.name) for file in path.glob("rank-*.msgpack")) or bool(read_accounts(path)[0])


def open_streams(path: Place, progress: Progress = silent) -> RunDirectory:
    """Open a run directory. Damage to files is no error: see ``problems``."""
    # First: what a process that still runs counts meanwhile may not be in a file that was looked at before.
    accounts, problems = read_accounts(path)
    ranks: dict[int, RankRecords] = {}
    files: list[Place] = sorted(
        (file for file in path.glob("rank-*.msgpack") if RANK_FILE.fullmatch(file.name)), key=_segment_key
    )
    with progress("reading", sum(map(_size, files))) as advance:
        for file in files:
            if _segment_key(file)[0] >= MOST_RANKS:
                problems.append(Problem("unreadable", f"{file.name} is left out: there is no rank of that number"))
        believed = [file for file in files if _segment_key(file)[0] < MOST_RANKS]
        for file, segment in each(lambda file: _opened(file, advance), believed):
            rank = _segment_key(file)[0]
            part = ranks.setdefault(rank, RankRecords(rank, []))
            if isinstance(segment, OSError):
                part.problems.append(Problem("unreadable", f"{file.name} cannot be read: {segment.strerror}"))
                continue
            part.segments.append(segment)
            if segment.complete or isinstance(file, StoredPath):
                advance(_size(file))
    return RunDirectory(path, ranks, accounts, problems)


def _opened(file: Place, advance: Advance) -> Segment:
    # Several threads open files of object storage, and must not all draw the progress bar.
    return open_segment(file) if isinstance(file, StoredPath) else open_segment(file, advance)


def runs_inside(path: Place) -> str | None:
    """What to say of a directory that is no run but holds some."""
    inner = sorted({str(file.parent) for file in path.glob("*/rank-*.msgpack")})
    return f"{path} is no run but holds some: {', '.join(inner[:5])}" if inner else None


def _size(file: Place) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _segment_key(file: Place) -> tuple[int, int]:
    found = RANK_FILE.fullmatch(file.name)
    assert found is not None
    return int(found["rank"]), int(found["segment"] or 0)


def _header(part: RankRecords) -> RankHeader:
    return read_header(part.rank, part.of_kind("header"), part.of_kind("config"), part.of_kind("parallel"))


def _matching_rows(segment: Segment, name: str | None, step: int | None, tags: Mapping[str, Any]) -> list[int]:
    index = segment.index
    wanted = [
        number
        for number, descriptor in enumerate(index.descriptors)
        if (name is None or descriptor.get("name") == name)
        and all(key in descriptor.get("tags", {}) and descriptor["tags"][key] == value for key, value in tags.items())
    ]
    mask = np.isin(index.columns["descriptor"], np.array(wanted, dtype="<u4"))
    if step is not None:
        mask &= index.columns["step"] == step
    rows: list[int] = np.flatnonzero(mask).tolist()
    return rows


def _alike(segment: Segment, rank: int) -> Iterator[Alike]:
    columns = segment.index.columns
    order = np.argsort(columns["descriptor"], kind="stable")
    if not len(order):
        return
    ends = np.flatnonzero(np.diff(columns["descriptor"][order])) + 1
    groups = np.split(order, ends)
    for rows in sorted(groups, key=lambda rows: int(rows[0])):
        steps = np.unique(columns["step"][rows])
        yield Alike(StoredRecord(segment, int(rows[0]), rank), len(rows), steps[steps != NO_STEP].tolist())


def _coverage(rank: int, part: RankRecords) -> list[TapCoverage]:
    recorded: dict[str, int] = {}
    for segment in part.segments:
        amounts = np.bincount(segment.index.columns["descriptor"], minlength=len(segment.index.descriptors))
        for descriptor, amount in zip(segment.index.descriptors, amounts.tolist(), strict=False):
            if (tap := descriptor.get("tap")) is not None:
                recorded[tap] = recorded.get(tap, 0) + amount
    return read_coverage(rank, part.of_kind("taps"), part.of_kind("coverage"), recorded, len(part.steps))

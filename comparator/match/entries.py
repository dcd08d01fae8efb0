"""The entries of a run: a row of numbers for each, and an object only for those that are asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from comparator.match.bundles import Alike, Entry
from comparator.match.numbering import Integers, combined
from dumper.reading.columns import OUTSIDE_STEPS
from dumper.reading.protocol import Record, RecordColumns


class Entries(Sequence[Entry]):
    """Entries of one run, in the order of its records. Those of one kind differ in rank, step, occurrence, order and
    content alone."""

    def __init__(
        self,
        kinds: Sequence[Entry],
        columns: tuple[Integers, Integers, Integers, Integers],
        records: Sequence[Record] | None,
        row: Integers | None = None,
    ) -> None:
        """``kinds``: an entry of each kind; ``columns``: of each entry its kind, rank, step and occurrence;
        ``records``: of the run, None where every kind has one entry; ``row``: which of them an entry is of, None: the
        n-th of the n-th."""
        self.kinds = kinds
        self.kind, self.rank, self.step, self.occurrence = columns
        self._records = records
        self._row = row

    @classmethod
    def of(cls, columns: RecordColumns, records: Sequence[Record]) -> Entries:
        """All records, under the names, tags and dims that they were recorded with."""
        kinds = [Entry(record, record.name, record.tags, record.dims) for record in columns.kinds]
        numbers = columns.kind, columns.rank, columns.step, columns.occurrence
        return cls(kinds, numbers, None if columns.one_by_one else records)

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return next(self.of_rows(np.array([index])))

    def of_rows(self, rows: Integers) -> Iterator[Entry]:
        """The entries of these numbers."""
        kinds, records = self.kinds, self._records
        numbers = self.kind[rows].tolist()
        if records is None:
            return map(kinds.__getitem__, numbers)
        at = rows if self._row is None else self._row[rows]
        return (
            Entry(records[row], like.name, like.tags, like.dims, like.piece)
            for row, like in zip(at.tolist(), map(kinds.__getitem__, numbers), strict=True)
        )

    def of_row(self, row: int) -> Entry:
        """The entry of a number."""
        like: Entry = self.kinds[int(self.kind[row])]
        if self._records is None:
            return like
        record = self._records[row if self._row is None else int(self._row[row])]
        return Entry(record, like.name, like.tags, like.dims, like.piece)

    def __iter__(self) -> Iterator[Entry]:
        return self.of_rows(np.arange(len(self)))

    def named(self, name: str) -> Iterator[Entry]:
        """The entries of a name, in order."""
        named = np.array([kind.name == name for kind in self.kinds], np.bool_)
        return self.of_rows(np.flatnonzero(named[self.kind]))

    @functools.cached_property
    def bytes_of_kinds(self) -> Integers:
        """Bytes that a record of each kind takes in its file; of compressed ones the first."""
        return np.array([kind.record.nbytes for kind in self.kinds], np.int64)

    def by_rank(self) -> Entries:
        """The same, with kinds of one rank each."""
        if self._records is None:
            return self
        number, _, _ = combined(self.kind, self.rank)
        _, firsts = np.unique(number, return_index=True)
        columns = number, self.rank, self.step, self.occurrence
        return Entries(list(self.of_rows(firsts)), columns, self._records, self._row)

    def replaced(self, becomes: Sequence[Sequence[Entry]]) -> Entries:
        """Each entry in the forms that its kind takes: none, one, or several one after the other."""
        counts = np.array([len(forms) for forms in becomes], np.int64)
        kinds = [form for forms in becomes for form in forms]
        repeats = counts[self.kind]
        taken = np.repeat(np.arange(len(self)), repeats)
        form = np.arange(len(taken)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        kind = (np.cumsum(counts) - counts)[self.kind[taken]] + form
        columns = kind, self.rank[taken], self.step[taken], self.occurrence[taken]
        return Entries(kinds, columns, self._records, taken if self._row is None else self._row[taken])


class Members(Sequence[Entry]):
    """Some entries of a run, made when they are asked for."""

    __slots__ = ("_alike", "_entries", "_made", "_rows", "_stays")

    def __init__(self, entries: Entries, rows: Integers, *, stays: bool = True) -> None:
        """``rows``: their numbers; ``stays``: what was made stays until ``forget``."""
        self._entries = entries
        self._rows = rows
        self._stays = stays
        self._made: tuple[Entry, ...] | None = None
        self._alike: Sequence[Alike] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._all())

    def _all(self) -> tuple[Entry, ...]:
        if self._made is not None:
            return self._made
        rows = self._rows
        # One by one where there is one, as in most bundles.
        made = (self._entries.of_row(int(rows[0])),) if len(rows) == 1 else tuple(self._entries.of_rows(rows))
        if self._stays:
            self._made = made
        return made

    def forget(self) -> None:
        """Let go of what was made."""
        self._made = self._alike = None

    @property
    def nbytes(self) -> int:
        """Bytes that they take in their files, as far as their kinds say."""
        return int(self._entries.bytes_of_kinds[self.kinds].sum())

    @property
    def first_kind(self) -> Entry:
        """An entry of the kind of the first one."""
        return self._entries.kinds[int(self._entries.kind[self._rows[0]])]

    @property
    def alike(self) -> Sequence[Alike]:
        """Of each an entry of its kind, its rank, its step and its occurrence."""
        if self._alike is not None:
            return self._alike
        entries, rows = self._entries, self._rows
        columns = [column[rows].tolist() for column in (entries.kind, entries.rank, entries.step, entries.occurrence)]
        alike = [
            (entries.kinds[kind], rank, None if step == OUTSIDE_STEPS else step, occurrence)
            for kind, rank, step, occurrence in zip(*columns, strict=True)
        ]
        if self._stays:
            self._alike = alike
        return alike

    @property
    def kinds(self) -> Integers:
        """Of each, the number of its kind: bundles with equal ones differ in rank, step and content alone."""
        return self._entries.kind[self._rows]

    @property
    def steps(self) -> tuple[int | None, ...]:
        """Their steps; what has no step comes first."""
        found = sorted(set(self._entries.step[self._rows].tolist()))
        return tuple(None if step == OUTSIDE_STEPS else step for step in found)

    def of_step(self, step: int | None) -> Members:
        """Those of one step."""
        wanted = OUTSIDE_STEPS if step is None else step
        return Members(self._entries, self._rows[self._entries.step[self._rows] == wanted])

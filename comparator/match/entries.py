"""The entries of a run: a row of numbers for each, and an object only for those that are asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.match.numbering import Integers, combined
from dumper.reading.columns import OUTSIDE_STEPS
from dumper.reading.protocol import Record, RecordColumns


class Piece(Protocol):
    """A part of a dimension that holds several things (``comparator.match.map``)."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]: ...
    def cut(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]: ...


class Entry(Struct, frozen=True):
    """A record as the comparison knows it: under the name, tags and dims that hold for it, cut to a piece."""

    record: Record
    name: str
    tags: Mapping[str, Any]
    dims: str | None
    piece: Piece | None = None

    @property
    def rank(self) -> int:
        return self.record.rank

    @property
    def step(self) -> int | None:
        return self.record.step

    @property
    def is_tensor(self) -> bool:
        return self.record.kind == "tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that was dumped, whatever its level; empty for a value that is no tensor."""
        shape = tuple(self.record.shape or ())
        return shape if self.piece is None else self.piece.shape(shape)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Of the array that is read: at level ``sample`` that of the rows that were kept."""
        rows = self.record.sampled_rows
        return self.shape if rows is None else (len(rows), *self.shape[1:])


Alike = tuple[Entry, int, int | None, int]
"""An entry of some kind; rank, step and occurrence of another one, which may differ from it in these and content."""


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

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return list(self.of_rows(np.arange(*index.indices(len(self)))))
        return self.of_row(index)

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

    def alike(self, rows: Integers) -> list[Alike]:
        """Of the entries of these numbers each an entry of its kind, its rank, its step and its occurrence."""
        columns = (self.kind, self.rank, self.step, self.occurrence)
        if len(rows) == 1:  # as in most bundles
            row = rows[0]
            lists = [[column[row].item()] for column in columns]
        else:
            lists = [column[rows].tolist() for column in columns]
        return [
            (self.kinds[kind], rank, None if step == OUTSIDE_STEPS else step, occurrence)
            for kind, rank, step, occurrence in zip(*lists, strict=True)
        ]

    def record_numbers(self, rows: Integers) -> Integers:
        """Which records of the run the entries of these numbers are."""
        return rows if self._row is None else self._row[rows]

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

    @functools.cached_property
    def all_readable(self) -> bool:
        """Whether there is no file among them that cannot be read."""
        entries = self.kinds if self._records is None else self
        return not [None for entry in entries if entry.record.error is not None]

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes that all of them take in their files, as far as their kinds say."""
        return int(self.bytes_of_kinds[self.kind].sum())

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

    __slots__ = ("_alike", "_entries", "_first_kind", "_made", "_rows", "_stays")

    def __init__(
        self, entries: Entries, rows: Integers, *, stays: bool = True, first_kind: Entry | None = None
    ) -> None:
        """``rows``: their numbers; ``stays``: what was made stays until ``forget``; ``first_kind``: see there, where it
        is known."""
        self._entries = entries
        self._rows = rows
        self._stays = stays
        self._first_kind = first_kind
        self._made: tuple[Entry, ...] | None = None
        self._alike: Sequence[Alike] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
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

    @property
    def places(self) -> tuple[Entries, Integers]:
        """The entries of the run, and the numbers of these among them."""
        return self._entries, self._rows

    def forget(self) -> None:
        """Let go of what was made."""
        self._made = self._alike = None

    @property
    def nbytes(self) -> int:
        """Bytes that they take in their files, as far as their kinds say."""
        entries, rows = self._entries, self._rows
        if len(rows) == 1:
            return int(entries.bytes_of_kinds[entries.kind[rows[0]]])
        return int(entries.bytes_of_kinds[entries.kind[rows]].sum())

    @property
    def first(self) -> Entry:
        """The first one; none of the others is made."""
        return self._entries.of_row(int(self._rows[0])) if self._made is None else self._made[0]

    @property
    def first_kind(self) -> Entry:
        """An entry of the kind of the first one."""
        if self._first_kind is None:
            self._first_kind = self._entries.kinds[int(self._entries.kind[self._rows[0]])]
        return self._first_kind

    @property
    def likes(self) -> list[Entry]:
        """Of each an entry of its kind."""
        kinds, rows = self._entries.kinds, self._rows
        if len(rows) == 1:
            return [kinds[self._entries.kind[rows[0]]]]
        return [kinds[kind] for kind in self._entries.kind[rows].tolist()]

    @property
    def alike(self) -> Sequence[Alike]:
        """Of each an entry of its kind, its rank, its step and its occurrence."""
        if self._alike is not None:
            return self._alike
        alike = self._entries.alike(self._rows)
        if self._stays:
            self._alike = alike
        return alike

    @property
    def steps(self) -> tuple[int | None, ...]:
        """Their steps; what has no step comes first."""
        found = set(self._entries.step[self._rows].tolist())
        return in_order(None if step == OUTSIDE_STEPS else step for step in found)

    def are(self, others: Members) -> bool:
        """Whether the others are the same entries, in the same order."""
        return self._entries is others._entries and np.array_equal(self._rows, others._rows)

    def of_step(self, step: int | None) -> Members:
        """Those of one step."""
        return self.where(self._entries.step[self._rows] == (OUTSIDE_STEPS if step is None else step))

    def where(self, chosen: Sequence[bool] | npt.NDArray[np.bool_]) -> Members:
        """Some of them: those at whose place there is True."""
        return Members(self._entries, self._rows[np.asarray(chosen, np.bool_)], stays=self._stays)


def bytes_of_each(several: Sequence[Members]) -> Integers:
    """Bytes that some entries take in their files, of each of ``several``, as far as their kinds say."""
    places = [members.places for members in several]
    counts = np.array([len(rows) for _, rows in places], np.int64)
    if not places or not counts.all() or any(entries is not places[0][0] for entries, _ in places):
        return np.array([members.nbytes for members in several], np.int64)
    entries = places[0][0]
    sizes = entries.bytes_of_kinds[entries.kind[np.concatenate([rows for _, rows in places])]]
    return np.add.reduceat(sizes, np.cumsum(counts) - counts)


def in_order(steps: Iterable[int | None]) -> tuple[int | None, ...]:
    """Each of these steps once; what has no step comes first."""
    return tuple(sorted(set(steps), key=lambda step: (step is not None, step or 0)))

"""What is compared with what: entries, bundles of them, and pairs of bundles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from comparator.options import Options, Side
from dumper.reading.protocol import Record, Run

if TYPE_CHECKING:
    from comparator.match.entries import Entries

KeyPart = tuple[str, str | int | None]
Key = tuple[KeyPart, ...]


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


class RunIndex(Struct, frozen=True):
    """A run and those of its records that take part, as the comparison knows them."""

    run: Run
    entries: Entries


class Bundle(Struct, frozen=True):
    """The entries on one side that make one logical tensor (or value)."""

    entries: Sequence[Entry]
    history: Sequence[Entry] = ()
    """The entries of all steps with the same name and tags, these among them."""
    family: Key = ()
    """What names that history: the key without the step."""

    @property
    def steps(self) -> tuple[int | None, ...]:
        return sorted_steps(self.entries)

    @property
    def recorded_dims(self) -> str | None:
        return self.like.dims or next((like.dims for like, *_ in self.alike if like.dims), None)

    def dims(self, name: str, side: Side, options: Options) -> str | None:
        """The dims that hold for the bundle: an override's, else the recorded ones."""
        return options.dims_for(name, self.recorded_dims, side)

    @property
    def like(self) -> Entry:
        """An entry of the kind of the first one: the same but for rank, step and content. No record is made."""
        found: Entry | None = getattr(self.entries, "first_kind", None)
        return self.entries[0] if found is None else found

    @property
    def alike(self) -> Sequence[Alike]:
        """Of each entry one of its kind, its rank, its step and its occurrence. No record is made."""
        found: Sequence[Alike] | None = getattr(self.entries, "alike", None)
        if found is not None:
            return found
        return [(entry, entry.rank, entry.step, entry.record.occurrence) for entry in self.entries]

    @property
    def nbytes(self) -> int:
        """Bytes that the entries take in their files. No record is made."""
        found: int | None = getattr(self.entries, "nbytes", None)
        return sum(entry.record.nbytes for entry in self.entries) if found is None else found

    def forget(self) -> None:
        """Let go of what was made of the entries; it is made again when it is asked for."""
        forget: Callable[[], None] | None = getattr(self.entries, "forget", None)
        if forget is not None:
            forget()

    @property
    def all_tensors(self) -> bool:
        return all(like.record.kind == "tensor" for like, *_ in self.alike)

    @property
    def all_whole(self) -> bool:
        """Whether all entries are tensors, and every element of them was recorded."""
        for like, *_ in self.alike:  # a generator would cost as much as all else, and this is asked for each pair
            record = like.record
            if record.kind != "tensor" or record.level != "full":
                return False
        return True


class BundlePair(Struct, frozen=True):
    """What is compared with what; one side is None when only the other has it."""

    name: str
    tags: Key
    """What else tells this pair from others of the name: tags, rank, occurrence, ..."""
    step: int | None
    """The step of the target's records; None when several steps are joined."""
    baseline: Bundle | None
    target: Bundle | None

    @property
    def label(self) -> str:
        """The pair for people: ``attn_output layer_id=3``."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.tags)])

    @property
    def family(self) -> Key:
        """The same for all pairs of one name and tags, whatever their step."""
        return (("name", self.name), *self.tags)

    def forget(self) -> None:
        """Let go of what was made of the entries of both sides."""
        for bundle in (self.baseline, self.target):
            if bundle is not None:
                bundle.forget()

    @property
    def tap(self) -> str | None:
        """Id of the tap in the target, or in the baseline where only that has one."""
        for bundle in (self.target, self.baseline):
            if bundle is not None and (tap := bundle.like.record.tap):
                return tap
        return None


def sorted_steps(entries: Sequence[Entry]) -> tuple[int | None, ...]:
    """The steps of entries; what has no step comes first."""
    return tuple(sorted({entry.step for entry in entries}, key=lambda step: (step is not None, step or 0)))


def split_steps(pair: BundlePair) -> list[BundlePair]:
    """One pair per step of a pair that joins steps; for what has no token dimension to join along."""
    steps = sorted_steps([entry for side in (pair.baseline, pair.target) if side for entry in side.entries])
    if len(steps) < 2:
        return [pair]
    return [
        replace(pair, step=step, baseline=_of_step(pair.baseline, step), target=_of_step(pair.target, step))
        for step in steps
    ]


def _of_step(bundle: Bundle | None, step: int | None) -> Bundle | None:
    if bundle is None:
        return None
    entries = tuple(entry for entry in bundle.entries if entry.step == step)
    return replace(bundle, entries=entries) if entries else None

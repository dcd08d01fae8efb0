"""What is compared with what: bundles of entries, and pairs of bundles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from comparator.match.entries import Alike, Entries, Entry, Members, bytes_of_each, in_order
from comparator.options import Options, Side
from dumper.reading.protocol import Run
from tensortap.dims import with_names

KeyPart = tuple[str, str | int | None]
Key = tuple[KeyPart, ...]


class RunIndex(Struct, frozen=True):
    """A run and those of its records that take part, as the comparison knows them."""

    run: Run
    entries: Entries


class Bundle(Struct, frozen=True):
    """The entries on one side that make one logical tensor (or value)."""

    entries: Members
    history: Members
    """The entries of all steps with the same name and tags, these among them."""
    family: Key
    """What names that history: the key without the step."""

    @property
    def steps(self) -> tuple[int | None, ...]:
        return self.entries.steps

    @property
    def recorded_dims(self) -> str | None:
        return self.like.dims or next((like.dims for like in self.likes if like.dims), None)

    def dims(self, name: str, side: Side, options: Options) -> str | None:
        """The dims that hold for the bundle: an override's, else the recorded ones."""
        found = options.dims_for(name, self.recorded_dims, side)
        if found is None or not found.lstrip().startswith("#"):
            return found
        return with_names(found, len(self.like.record.shape or ()))

    @property
    def like(self) -> Entry:
        """An entry of the kind of the first one: the same but for rank, step and content. No record is made."""
        return self.entries.first_kind

    @property
    def likes(self) -> Sequence[Entry]:
        """Of each entry one of its kind. No record is made."""
        return self.entries.likes

    @property
    def alike(self) -> Sequence[Alike]:
        """Of each entry one of its kind, its rank, its step and its occurrence. No record is made."""
        return self.entries.alike

    @property
    def nbytes(self) -> int:
        """Bytes that the entries take in their files. No record is made."""
        return self.entries.nbytes

    def of(self, entries: Members, history: Members | None = None) -> Bundle:
        """The same with other entries, or another history."""
        return Bundle(entries, self.history if history is None else history, self.family)

    def forget(self) -> None:
        """Let go of what was made of the entries; it is made again when it is asked for."""
        self.entries.forget()

    @property
    def all_tensors(self) -> bool:
        return all(like.record.kind == "tensor" for like in self.likes)

    @property
    def all_whole(self) -> bool:
        """Whether all entries are tensors, and every element of them was recorded."""
        for like in self.likes:  # a generator would cost as much as all else, and this is asked for each pair
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


def bytes_of_pairs(pairs: Sequence[BundlePair]) -> list[int]:
    """Bytes that each takes in the files, as far as the kinds of its entries say."""
    found = np.zeros(len(pairs), np.int64)
    for side in ([pair.baseline for pair in pairs], [pair.target for pair in pairs]):
        there = [(number, bundle.entries) for number, bundle in enumerate(side) if bundle is not None]
        found[[number for number, _ in there]] += bytes_of_each([entries for _, entries in there])
    sizes: list[int] = found.tolist()
    return sizes


def split_steps(pair: BundlePair) -> list[BundlePair]:
    """One pair per step of a pair that joins steps; for what has no token dimension to join along."""
    steps = in_order(step for side in (pair.baseline, pair.target) if side is not None for step in side.steps)
    if len(steps) < 2:
        return [pair]
    return [
        replace(pair, step=step, baseline=_of_step(pair.baseline, step), target=_of_step(pair.target, step))
        for step in steps
    ]


def _of_step(bundle: Bundle | None, step: int | None) -> Bundle | None:
    if bundle is None:
        return None
    entries = bundle.entries.of_step(step)
    return bundle.of(entries) if len(entries) else None

"""A directory of SGLang's ``.pt`` dumps, seen through the interface of a run.

File names are the index; a file is read when what is in it is asked for.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dumper.format.run_files import MOST_RANKS
from dumper.layout import TokenLayout
from dumper.readers.sglang import pt_files
from dumper.readers.sglang.facts import Facts, FactsAhead, facts_of, facts_of_file
from dumper.readers.sglang.plain_pt import MOST_READ, Stored, read_again, read_together, stamps_of, views_of_each
from dumper.readers.sglang.pt_files import Content, PtFileError
from dumper.readers.sglang.pt_format.archive import Stamp
from dumper.reading.base import RecordBase, RunBase
from dumper.reading.headers import RankHeader, ranks_missing
from dumper.reading.named_files import AUXILIARY_NAMES, PARALLEL_KEYS
from dumper.reading.protocol import ArraysInFile, Problem, Record
from dumper.values.dtypes import numpy_dtype
from tensortap.printable import printable

if TYPE_CHECKING:
    import torch

_GRADIENT = "grad__"


class SGLangRecord(RecordBase, Struct, eq=False):
    """One file of a dump, with the names that records of a run have."""

    folder: str
    file: str
    """Its name."""
    parts: Mapping[str, str]
    """The parts of the file name, as they are written."""
    tags: Mapping[str, Any]
    step: int
    rank: int
    dump_index: int
    occurrence: int = 0
    ahead: FactsAhead | None = None
    """Reads the facts of records of the dump, and the number of this one among them."""
    number: int = 0
    _place: bytes | None = None
    _facts: Facts | None = None
    _checked: Content | npt.NDArray[Any] | None = None
    """What was checked last: a record is checked, then read, once."""
    _read: npt.NDArray[Any] | None = None
    """Its tensor, where that was read with others, for the next time that it is asked for."""

    @property
    def path(self) -> Path:
        return Path(self.folder, self.file)

    @property
    def place(self) -> bytes:
        """The path as the system has it, which takes a tenth of the time."""
        if self._place is None:
            self._place = os.fsencode(f"{self.folder}{os.sep}{self.file}")
        return self._place

    @property
    def named_file(self) -> SGLangRecord:
        return self

    @property
    def filename(self) -> str:
        return self.file

    @property
    def source(self) -> str:
        return self.file

    @property
    def order(self) -> int:
        return self.dump_index

    @property
    def dumped_name(self) -> str:
        """The name in the file's name; gradients are called ``grad__NAME``."""
        return self.parts["name"]

    @property
    def name(self) -> str:
        return self.dumped_name.removeprefix(_GRADIENT)

    @property
    def stream(self) -> str:
        return "grad" if self.dumped_name.startswith(_GRADIENT) else "value"

    @property
    def recompute(self) -> bool:
        return self.parts.get("recompute_status") == "recompute"

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            if self.ahead is not None:
                self.ahead.fill(self.number)
            else:
                self._facts = facts_of_file(self.path)
        assert self._facts is not None
        return self._facts

    def keep(self, facts: Facts) -> None:
        """These are the facts of the file."""
        self._facts = facts

    @property
    def parallel(self) -> Mapping[str, tuple[int, int]]:
        """Axis name to ``(rank, size)``."""
        return pt_files.parallel_layout(self.facts.meta)

    @property
    def error(self) -> str | None:
        """Why the file cannot be read; None when it can."""
        return self.facts.error

    @property
    def meta(self) -> Mapping[str, Any]:
        """What SGLang's dumper says of the value: the parts of the file name, and more."""
        return {**self.parts, "rank": self.rank, **self.facts.meta}

    @property
    def own_meta(self) -> Mapping[str, Any]:
        """What the file holds beside the value."""
        return self.facts.meta

    @property
    def dtype(self) -> str | None:
        return self.facts.dtype

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.facts.shape

    @property
    def dims(self) -> str | None:
        return self.facts.dims

    @property
    def nbytes(self) -> int:
        facts = self._facts
        return self.path.stat().st_size if facts is None or facts.stamp is None else facts.stamp[0]

    def changed(self, now: Stamp | None) -> str | None:
        """In words that the file, which has the stamp ``now``, is not what it was when it was read first; None where it
        is, or there is none."""
        facts = self._facts
        if facts is None or facts.stamp is None or now is None or now == facts.stamp:
            return None
        if now[0] < facts.stamp[0]:
            return f"{self.file} was cut while it was read: it had {facts.stamp[0]} bytes, and has {now[0]}"
        return f"{self.file} was written to while it was read"

    def holds(self, array: npt.NDArray[Any] | None) -> None:
        """This is what its tensor is, if that is asked for next; None: it is to be read."""
        self._read = array

    def stored(self, most: int) -> Stored | None:
        """Where its tensor is found again, where that is known and it takes at most so many bytes."""
        facts = self.facts
        tensor, stamp = facts.tensor, facts.stamp
        if tensor is None or stamp is None or tensor.stop - tensor.start > most:
            return None
        return self.place, tensor, stamp

    def _content(self, *, with_torch: bool = False) -> Content:
        try:
            return pt_files.load(self.path, with_torch=with_torch)
        except PtFileError as error:
            raise ValueError(str(error)) from None

    def is_intact(self) -> bool:
        """Whether the file can be read; SGLang writes no checksums but those of the zip format."""
        if self._read is not None:
            self._checked, self._read = self._read, None
            return True
        try:
            self._checked = self._known_content() or self._whole_content()
        except PtFileError:
            return False
        return True

    def _whole_content(self) -> Content:
        content = pt_files.load(self.path)
        if self._facts is None:
            self._facts = facts_of(content)
        return content

    def _known_content(self) -> Content | None:
        """What the file holds, from where its tensor was found before; None where all of it must be read."""
        facts = self._facts
        if facts is None or facts.tensor is None or facts.stamp is None:
            return None
        try:
            tensor = read_again(self.path, facts.tensor, facts.stamp)
        except OSError:
            return None
        return None if tensor is None else Content(tensor, facts.meta)

    def tensor(self) -> torch.Tensor:
        """The tensor on the CPU, mapped from the file. Raises ValueError when it is none or cannot be read."""
        self._checked = None
        value = self._tensor(self._content(with_torch=True))
        tensor: torch.Tensor = value.detach()
        return tensor

    def _tensor(self, content: Content) -> Any:
        value = content.value
        if not pt_files.is_tensor(value):
            raise ValueError(f"{self.filename} holds no tensor; read .value")
        return value

    def array(self) -> npt.NDArray[Any]:
        """The tensor as numpy (``ml_dtypes`` for bf16 and fp8). Raises ValueError as ``tensor`` does."""
        checked, self._checked = self._checked, None
        if isinstance(checked, np.ndarray):
            return checked
        return pt_files.to_array(self._tensor(checked or self._known_content() or self._content()))

    @property
    def value(self) -> Any:
        """The value of a record that is no tensor; tensors inside it as numpy arrays. Raises ValueError."""
        value = self._content().value
        if pt_files.is_tensor(value):
            raise ValueError(f"{self.filename} is a tensor; read .array() or .tensor()")
        return _without_tensors(value)

    def raw_value(self) -> Any:
        """What the file holds, a ``torch.Tensor`` or plain values with such tensors in them. Raises ValueError."""
        value = self._content().value
        if type(value) in (str, int, float, bool, type(None)):
            return value
        return self._content(with_torch=True).value

    def __repr__(self) -> str:
        return f"<SGLangRecord {printable(self.filename)}>"


def _without_tensors(value: Any) -> Any:
    if pt_files.is_tensor(value):
        return pt_files.to_array(value)
    if isinstance(value, dict):
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_tensors, value)) if type(value) in (list, tuple) else list(value)
    return value


class SGLangDump(RunBase):
    """A ``dumper.reading.protocol.Run`` on a directory of ``.pt`` files."""

    def __init__(self, path: Path, records: Sequence[SGLangRecord], problems: Sequence[Problem]) -> None:
        self.path = path
        self.records = records
        self.unnamed_files = tuple(problems)
        """Files whose names are not those of a dump."""
        self._read_together: Sequence[SGLangRecord] = ()
        self.ranks = tuple(sorted({record.rank for record in records}))
        self.steps = tuple(sorted({record.step for record in records}))

    @functools.cached_property
    def headers(self) -> Mapping[int, RankHeader]:
        """By rank, from the first of its files that can be read."""
        return {rank: _header(rank, records) for rank, records in self._by_rank.items()}

    @functools.cached_property
    def _by_rank(self) -> Mapping[int, Sequence[SGLangRecord]]:
        found: dict[int, list[SGLangRecord]] = {rank: [] for rank in self.ranks}
        for record in self.records:
            found[record.rank].append(record)
        return found

    @property
    def has_named_files(self) -> bool:
        return True

    @functools.cached_property
    def _layouts(self) -> Mapping[int, Mapping[int, TokenLayout]]:
        """Per rank, per step; from what SGLang's dumper records of every batch."""
        batches = {
            rank: [one for one in records if one.parts["name"] in AUXILIARY_NAMES]
            for rank, records in self._by_rank.items()
        }
        if not any(batches.values()):
            return {}
        from dumper.readers.sglang.token_layouts import rank_layouts, with_data_parallel  # not every use needs them

        parallel = {rank: header.parallel for rank, header in self.headers.items()}
        found = {rank: rank_layouts(records, parallel[rank]) for rank, records in batches.items()}
        present = {rank: {record.step for record in records} for rank, records in self._by_rank.items()}
        return with_data_parallel(found, present, parallel)

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        """Derived from ``input_ids``, ``positions``, ``seq_lens`` and ``rids`` (Megatron: ``cu_seqlens_q`` and
        ``position_ids``) of the step; None where they are not there or contradict each other."""
        return self._layouts.get(rank, {}).get(step)

    def read_ahead(self) -> None:
        first = self.records[0] if self.records else None
        if first is not None and first.ahead is not None and first._facts is None:  # else others have looked at them
            first.ahead.begin()

    def read_together(self, records: Iterable[Record]) -> None:
        for before in self._read_together:
            before.holds(None)
        small: dict[int, list[tuple[SGLangRecord, Stored]]] = {}
        for record in records:
            if isinstance(record, SGLangRecord) and (stored := record.stored(MOST_READ)) is not None:
                small.setdefault(stored[1].stop - stored[1].start, []).append((record, stored))
        self._read_together = [one for several in small.values() for one, _ in several]
        for several in small.values():
            data, read = read_together([stored for _, stored in several])
            arrays = views_of_each([tensor for _, (_, tensor, _) in several], data)
            for (record, _), array, good in zip(several, arrays, read, strict=True):
                record.holds(array if good else None)

    def arrays_in_files(self, numbers: npt.NDArray[np.int64], most: int) -> Iterable[ArraysInFile]:
        """Of small files, the tensors of one dtype and shape in one piece of memory."""
        kinds: dict[tuple[str, tuple[int, ...]], list[tuple[int, Stored]]] = {}
        for at, number in enumerate(numbers.tolist()):
            stored = self.records[number].stored(min(most, MOST_READ))
            if stored is not None and stored[1].lies_whole:
                kinds.setdefault((stored[1].dtype, stored[1].shape), []).append((at, stored))
        for (dtype, shape), several in kinds.items():
            yield from _of_one_kind(several, numpy_dtype(dtype), shape)

    @property
    def changed_files(self) -> Sequence[str]:
        """In words, which files others have changed since they were first read."""
        now = stamps_of([record.place for record in self.records])
        found = [record.changed(stamp) for record, stamp in zip(self.records, now, strict=True)]
        return [changed for changed in found if changed is not None]

    @functools.cached_property
    def problems(self) -> Sequence[Problem]:
        """Missing ranks and files whose name or content cannot be read. Reads every file's metadata."""
        found = list(self.unnamed_files)
        found += ranks_missing(self.missing_ranks, self.world_size, self.ranks)
        found += [Problem("unreadable", record.error) for record in self.records if record.error is not None]
        if not self.records:
            found.append(Problem("empty", f"{self.path} holds no records"))
        return found

    def __repr__(self) -> str:
        from dumper.reading.listing import counts

        # Not the problems: to know them every file is read.
        return f"<SGLangDump {printable(self.path)}: {counts(self)}>"


def _of_one_kind(
    found: Sequence[tuple[int, Stored]], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[ArraysInFile]:
    data, read = read_together([stored for _, stored in found])
    _, tensor, _ = found[0][1]
    at = np.array([at for at, _ in found], np.int64)
    starts = np.arange(len(found), dtype=np.int64) * (tensor.stop - tensor.start)
    if all(read):
        yield ArraysInFile(at, data, starts, dtype, shape)
    elif any(read):
        yield ArraysInFile(at[read], data, starts[read], dtype, shape)


def _header(rank: int, records: Sequence[SGLangRecord]) -> RankHeader:
    meta: Mapping[str, Any] = {}
    for record in records:
        if record.error is None and record.facts.meta:
            meta = record.facts.meta
            break
    world_size = meta.get("world_size")
    framework = next((key.split("_")[0] for key in PARALLEL_KEYS if meta.get(key)), None)
    return RankHeader(
        rank=rank,
        world_size=world_size if isinstance(world_size, int) and rank < world_size <= MOST_RANKS else rank + 1,
        parallel=pt_files.parallel_layout(meta),
        versions={},
        framework=framework,
        settings={},
        patch_config=None,
    )

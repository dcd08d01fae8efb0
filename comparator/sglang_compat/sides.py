"""One side of a pair by SGLang's rules: which files count, and the tensor that they make in each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from comparator.align.unshard import ReplicaDifference
from comparator.dims import Dims, parse_dims
from comparator.errors import PairError
from comparator.match.pairs import Bundle
from comparator.options import Options
from comparator.plan.tokens.interface import Side
from comparator.sglang_compat.places import KNOWN_AXES, active_place
from comparator.sglang_compat.shards import join_shards
from dumper.readers.sglang.dump import SGLangDump, SGLangRecord
from dumper.readers.sglang.token_layouts import AUXILIARY_NAMES

Array = npt.NDArray[Any]

NO_DIMS_HINT = (
    "give dims in the dump call or with --override-dims 'NAME:t h[tp]' (or 't h # tp:replicated'), or compare rank by "
    "rank with --preset raw"
)


class SeveralPartsError(Exception):
    """More than one data-parallel rank holds rows: SGLang's rules have no answer, ours join them."""


@dataclass(frozen=True)
class SideFiles:
    """The files of one side that can be read, in the order of ranks, and dims of the first one."""

    side: Side
    records: tuple[SGLangRecord, ...]
    dims_text: str | None = None
    known_axes: frozenset[str] = KNOWN_AXES
    unreadable: tuple[str, ...] = ()
    """Messages about files that cannot be read; they make the comparison fail."""

    @property
    def dims(self) -> Dims | None:
        """Raises DimsError for dims that cannot be read."""
        if self.dims_text is None:
            return None
        dims = parse_dims(self.dims_text)
        dims.check_axes(self.known_axes)
        return dims

    @property
    def all_tensors(self) -> bool:
        return all(record.kind == "tensor" for record in self.records)

    @property
    def data_parallel_axis(self) -> str:
        return (self.dims.data_parallel_axis if self.dims else None) or "dp"


@dataclass
class SideTensors:
    """What the files of one side make."""

    by_step: dict[int, Array] = field(default_factory=dict)
    replicas: list[ReplicaDifference] = field(default_factory=list)
    unrelated: tuple[int, ...] = ()
    """Ranks that recorded it in the same step, with nothing that says how they relate."""


def side_files(side: Side, name: str, bundle: Bundle | None, run: SGLangDump, options: Options) -> SideFiles:
    """Read the metadata of a side's files."""
    records = [record for record in bundle.records if isinstance(record, SGLangRecord)] if bundle else []
    readable = tuple(record for record in records if record.error is None)
    unreadable = tuple(str(record.error) for record in records if record.error is not None)
    if not readable:
        return SideFiles(side, readable, unreadable=unreadable)
    recorded_axes = {axis for header in run.headers.values() for axis in header.parallel}
    text = options.dims_for(name, readable[0].dims, side)
    return SideFiles(side, readable, text, KNOWN_AXES | recorded_axes, unreadable)


def without_empty_ranks(files: SideFiles) -> SideFiles:
    """Keep the files of the one data-parallel rank that holds something.

    Raises SeveralPartsError when several do, PairError when none does.
    """
    axis = files.data_parallel_axis
    places = [record.facts.parallel.get(axis) for record in files.records]
    if not places or places[0] is None or places[0][1] <= 1 or not any(one.kind == "tensor" for one in files.records):
        return files
    ranks = [0 if place is None else place[0] for place in places]
    filled = {
        rank
        for rank, record in zip(ranks, files.records, strict=True)
        if record.shape is not None and int(np.prod(record.shape)) > 0
    }
    if len(filled) > 1:
        raise SeveralPartsError
    if not filled:
        raise PairError(f"every {axis} rank of the {files.side} holds an empty tensor")
    kept = tuple(record for rank, record in zip(ranks, files.records, strict=True) if rank in filled)
    return replace(files, records=kept)


def side_tensors(
    name: str, files: SideFiles, options: Options, sequence_lengths: Mapping[int, Sequence[int]]
) -> SideTensors:
    """Unshard every step of a side. Raises PairError, DimsError or ValueError when a step cannot be put together."""
    found = SideTensors()
    for record in files.records:
        if files.dims is not None and len(record.shape or ()) != len(files.dims.dimensions):
            files.dims.check_shape(record.shape or ())
    for step in sorted({record.step for record in files.records}):
        of_step = [record for record in files.records if record.step == step]
        arrays = [record.array() for record in of_step]
        joined: tuple[Array, list[ReplicaDifference]] | None
        if len(arrays) == 1:
            joined = (arrays[0], [])
        else:
            joined = _join_step(name, of_step, arrays, files, options, sequence_lengths.get(step))
        if joined is None:
            if name in AUXILIARY_NAMES and files.dims is None:
                found.unrelated = tuple(record.rank for record in of_step)
                continue
            raise _unrelated(of_step, files)
        found.by_step[step] = joined[0]
        found.replicas.extend(joined[1])
    return found


def _join_step(
    name: str,
    records: Sequence[SGLangRecord],
    arrays: Sequence[Array],
    files: SideFiles,
    options: Options,
    lengths: Sequence[int] | None,
) -> tuple[Array, list[ReplicaDifference]] | None:
    text = options.dims_for(name, records[0].dims, files.side)
    if text is None:
        return None
    dims = parse_dims(text)
    also = dims.axes - KNOWN_AXES
    places = [active_place(record, also) for record in records]
    return join_shards(
        arrays, places, dims, data_parallel_axis=dims.data_parallel_axis or "dp", sequence_lengths=lengths
    )


def _unrelated(records: Sequence[SGLangRecord], files: SideFiles) -> PairError:
    ranks = ", ".join(str(record.rank) for record in records)
    if files.dims_text is None:
        return PairError(
            f"the {files.side} recorded it on ranks {ranks} without dims that say how they relate", hint=NO_DIMS_HINT
        )
    return PairError(
        f"the {files.side} recorded it on ranks {ranks}, and dims {files.dims_text!r} do not tell them apart",
        hint=NO_DIMS_HINT,
    )


def sequence_lengths_by_step(run: SGLangDump, options: Options, *, filtered: bool) -> dict[int, list[int]]:
    """Rows per sequence in each step, from ``seq_lens`` or ``cu_seqlens_q``, for packed tokens that are split."""
    found: dict[int, list[int]] = {}
    for record in run.records:
        if record.dumped_name not in ("seq_lens", "cu_seqlens_q") or record.step in found or record.error is not None:
            continue
        if filtered and not options.start_step <= record.step <= options.end_step:
            continue
        if record.kind == "tensor" and record.shape is not None and len(record.shape) == 1:
            values = record.array()
            lengths = np.diff(values) if record.dumped_name == "cu_seqlens_q" else values
            if len(lengths):
                found[record.step] = [int(length) for length in lengths]
    return found

"""Runs of a pretend model: every token has a value that depends on its prefix alone, however it was computed.

``record`` spreads the passes of a schedule over ranks and gives the tensors that each rank would dump, in every
form that rows can have. Padding rows hold noise that differs from rank to rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

from dumper.adapters.protocol import Process
from dumper.layout import PADDING_ROW, ContextParallelRows, TokenLayout
from dumper.recording.recorder import Recorder
from dumper.settings import Settings
from testbed.synthetic_engine import RankPass, Schedule

WIDTH = 4
"""Elements per token."""

Array = npt.NDArray[np.float64]
Parallel = dict[str, tuple[int, int]]


@lru_cache(maxsize=100_000)
def token_value(prefix: tuple[int, ...]) -> tuple[float, ...]:
    """The value of the last token of ``prefix``: different prefixes have different values."""
    generator = np.random.default_rng([len(prefix), *(token + 1 for token in prefix)])
    return tuple(generator.integers(1, 1 << 20, WIDTH).astype(float))


@dataclass(frozen=True)
class ContextParallel:
    """How a run splits the rows over context-parallel ranks."""

    size: int
    ordering: str
    local: bool


@dataclass(frozen=True, eq=False)
class SyntheticRun:
    """What a run recorded, in memory. It is a ``LayoutSource``."""

    steps: tuple[int, ...]
    ranks: tuple[int, ...]
    parallel: dict[int, Parallel]
    layouts: dict[tuple[int, int], TokenLayout]
    tensors: dict[str, dict[tuple[int, int], Array]] = field(default_factory=dict)
    """Form to ``(step, rank)`` to values of shape ``(rows, WIDTH)``."""

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        return self.layouts.get((step, rank))

    def rows(self, form: str) -> dict[int | None, tuple[tuple[int, int], ...]]:
        """What ``classify_steps`` wants to know of a tensor."""
        found: dict[int | None, list[tuple[int, int]]] = {}
        for (step, rank), values in sorted(self.tensors[form].items()):
            found.setdefault(step, []).append((rank, len(values)))
        return {step: tuple(rows) for step, rows in found.items()}

    def with_fault(self, form: str, step: int, rank: int, row: int) -> SyntheticRun:
        """The run with one row of one rank changed."""
        values = self.tensors[form][step, rank].copy()
        values[row] += 0.5
        changed = {**self.tensors[form], (step, rank): values}
        return replace(self, tensors={**self.tensors, form: changed})

    def without_ranks(self, *ranks: int) -> SyntheticRun:
        """The run as if these ranks had recorded nothing but their layouts."""
        tensors = {
            form: {key: values for key, values in found.items() if key[1] not in ranks}
            for form, found in self.tensors.items()
        }
        return replace(self, tensors=tensors)


def record(schedule: Schedule, *, context: ContextParallel | None = None) -> SyntheticRun:
    """Run the schedule on ``data x context x tensor`` ranks, tensor-parallel ranks side by side.

    Forms: ``own`` rows; ``partial`` (sums over attn_tp to ``own``); ``scattered`` (own rows over attn_tp);
    ``gathered`` and ``gathered_scattered`` (over tp); ``real`` rows of a rank; ``last`` row of each sequence.
    """
    engine = schedule.engine
    tensor, contexts = engine.attention_tensor_parallel, 1 if context is None else context.size
    size = engine.data_parallel * contexts * tensor
    parallel = {
        rank: {
            "tp": (rank, size),
            "attn_dp": (rank // (contexts * tensor), engine.data_parallel),
            "attn_cp": (rank // tensor % contexts, contexts),
            "attn_tp": (rank % tensor, tensor),
        }
        for rank in range(size)
    }
    layouts: dict[tuple[int, int], TokenLayout] = {}
    tensors: dict[str, dict[tuple[int, int], Array]] = {}
    for step, ranks_of_pass in enumerate(schedule.passes):
        for rank, places in parallel.items():
            own = ranks_of_pass[places["attn_dp"][0]]
            noise = np.random.default_rng([step, rank, 99])
            layouts[step, rank] = own.layout
            whole = _values(own, noise)
            if context is not None:
                indices = context_rows(own.layout, context, places["attn_cp"][0])
                layouts[step, rank] = _context_layout(own.layout, context, places["attn_cp"][0], indices)
                whole = whole[indices]
            forms = {"own": whole, "scattered": np.array_split(whole, tensor)[places["attn_tp"][0]]}
            forms["partial"] = _partial(whole, step, places)
            if context is None:
                gathered = _gathered(ranks_of_pass, noise)
                real = own.layout.row_identities()[0] != PADDING_ROW
                forms["gathered"] = gathered
                forms["gathered_scattered"] = np.array_split(gathered, size)[rank]
                forms["real"] = whole[real]
                forms["last"] = whole[_last_rows(own.layout)]
            for form, values in forms.items():
                tensors.setdefault(form, {})[step, rank] = values
    steps = tuple(range(len(schedule.passes)))
    return SyntheticRun(steps, tuple(parallel), parallel, layouts, tensors)


def context_rows(layout: TokenLayout, context: ContextParallel, rank: int) -> npt.NDArray[np.int64]:
    """Rows of a pass that a context-parallel rank holds, written by its definition."""
    rows = np.arange(layout.rows)
    if context.ordering == "interleave":
        return rows[rank :: context.size]
    if layout.batch_shape is not None:
        lines = list(rows.reshape(layout.batch_shape))
    else:
        ends = np.cumsum([span.count for span in layout.sequences])
        lines = np.split(rows, ends[:-1]) if len(ends) else [rows]  # padding goes with the last sequence
    found = []
    for line in lines:
        if context.ordering == "natural":
            found.append(np.array_split(line, context.size)[rank])
        else:
            pieces = np.array_split(line, 2 * context.size)
            found.extend([pieces[rank], pieces[2 * context.size - 1 - rank]])
    return np.concatenate(found)


def _context_layout(
    layout: TokenLayout, context: ContextParallel, rank: int, indices: npt.NDArray[np.int64]
) -> TokenLayout:
    how = ContextParallelRows("attn_cp", rank, context.size, context.ordering, context.local)  # type: ignore[arg-type]
    if not context.local:
        return replace(layout, context_parallel=how)
    sequence, position = layout.row_identities()
    shape = layout.batch_shape
    return replace(
        layout,
        rows=len(indices),
        token_ids=None if layout.token_ids is None else layout.token_ids[indices],
        row_sequence=sequence[indices],
        row_position=position[indices],
        batch_shape=None if shape is None else (shape[0], len(indices) // shape[0]),
        context_parallel=how,
    )


def _values(rank_pass: RankPass, noise: np.random.Generator) -> Array:
    values = noise.normal(size=(len(rank_pass.prefixes), WIDTH))
    for row, prefix in enumerate(rank_pass.prefixes):
        if prefix:
            values[row] = token_value(prefix)
    return values


def _gathered(ranks_of_pass: tuple[RankPass, ...], noise: np.random.Generator) -> Array:
    return np.concatenate([_values(rank_pass, noise) for rank_pass in ranks_of_pass])


def _partial(whole: Array, step: int, places: Parallel) -> Array:
    """Integers that add up to ``whole`` over attn_tp, so that the sum is exact (but for the noise)."""
    rank, size = places["attn_tp"]
    if size == 1:
        return whole
    shares = np.random.default_rng([step, len(whole), places["attn_dp"][0]]).integers(-1000, 1000, (size, *whole.shape))
    shares[-1] = -shares[:-1].sum(axis=0)
    return np.asarray(shares[rank] + (whole if rank == 0 else 0), np.float64)


def _last_rows(layout: TokenLayout) -> list[int]:
    sequence, _ = layout.row_identities()
    return [int(np.flatnonzero(sequence == index)[-1]) for index in np.unique(sequence[sequence >= 0])]


DIMS = {
    "own": "t h # tp:replicated",
    "partial": "t h[tp:partial]",
    "scattered": "t h # tp:replicated",
    "gathered": "t h # tp:replicated",
    "gathered_scattered": "t h # tp:replicated",
    "real": "t h # tp:replicated",
    "last": "t h # tp:replicated",
}
"""One set of dims for every layout. A run with context parallelism says so: ``t[attn_cp:zigzag] h``."""


_WHOLE_ROWS = frozenset({"own", "partial", "gathered"})
"""Forms that keep the shape of a padded batch."""


def write(run: SyntheticRun, path: Path, *, dims: Mapping[str, str | None] | None = None) -> Path:
    """Write the run with the dumper, a recorder per rank; returns ``path``.

    ``dims`` overrides ``DIMS`` per form; None: without dims. Padded batches are written as ``b s h``.
    """
    for rank in run.ranks:
        process = Process(rank, len(run.ranks), run.parallel[rank], versions={}, framework=None)
        with mock.patch("dumper.recording.session.describe_process", return_value=process):
            recorder = Recorder(Settings(enable=True, dir=str(path.parent), run=path.name))
            for step in run.steps:
                layout = run.layouts[step, rank]
                recorder.step(layout=layout)
                for form, found in run.tensors.items():
                    if (step, rank) in found:
                        values, form_dims = found[step, rank], {**DIMS, **(dims or {})}[form]
                        if layout.batch_shape is not None and form in _WHOLE_ROWS:
                            values = values.reshape(layout.batch_shape[0], -1, WIDTH)
                            form_dims = None if form_dims is None else f"b s{form_dims[1:]}"
                        recorder.dump(form, values, dims=form_dims)
            recorder.close()
    return path

"""What the comparison takes from a run beside its records: ranks and axes, file names, and which rules hold."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from comparator.match.bundles import RunIndex
from comparator.match.entries import Entries
from comparator.options import Options
from comparator.rules import OUR_RULES, SGLANG_RULES, Rules
from dumper.reading.named_files import AUXILIARY_NAMES, CONVERTED
from dumper.reading.protocol import Run
from tensortap.progress import Progress, silent, watched


def parallel_layout(run: Run) -> dict[int, dict[str, tuple[int, int]]]:
    """Per rank its coordinates on every recorded axis: axis to ``(rank, size)``.

    An axis that only the token layouts name (a run that was recorded without an engine that knows its ranks) is
    taken from the first layout of each rank.
    """
    return {
        rank: {
            **_axes_of_layouts(run, rank),
            **{axis: (int(at), int(size)) for axis, (at, size) in header.parallel.items()},
        }
        for rank, header in run.headers.items()
    }


def _axes_of_layouts(run: Run, rank: int) -> Mapping[str, tuple[int, int]]:
    for step in run.steps:
        layout = run.layout(step, rank)
        if layout is not None:
            named = (layout.data_parallel, layout.context_parallel)
            return {place.axis: (place.rank, place.size) for place in named if place is not None}
    return {}


def choose_rules(baseline: Run, target: Run, options: Options) -> tuple[Rules, Options]:
    """The rules that hold for two runs, and the options as these understand them.

    Between two of SGLang's dumps ``smart`` needs to know the tokens of both sides; without ``input_ids`` and what goes
    with them, steps are compared one by one.
    """
    if not (baseline.has_named_files and target.has_named_files):
        return OUR_RULES, options
    if options.token_aligner == "smart" and not (_knows_tokens(baseline) and _knows_tokens(target)):
        options = replace(options, token_aligner="per_step")
    return SGLANG_RULES, options


def index(run: Run, rules: Rules, progress: Progress = silent) -> RunIndex:
    """The records of a run that take part.

    Between two dumps of SGLang's all of them do. Else what its dumper records of every batch does not: such records
    have no dims, and token layouts, by which rows are aligned, are made from them.
    """
    leave_out = rules.grouping == "tags" and (run.has_named_files or _is_converted(run))
    columns = run.columns()
    # Of a dump of SGLang's each record is a file, which is read here once.
    for record in watched(columns.kinds, f"reading {run.path.name}", progress):
        _ = record.dims
    entries = Entries.of(columns, run.records)
    if rules.grouping != "tags":
        _ = entries.all_readable  # before processes are forked, each of which would ask
    if leave_out:
        entries = entries.replaced(
            [() if kind.name in AUXILIARY_NAMES and kind.dims is None else (kind,) for kind in entries.kinds]
        )
    return RunIndex(run, entries)


def _is_converted(run: Run) -> bool:
    return any(CONVERTED in header.versions for header in run.headers.values())


def _knows_tokens(run: Run) -> bool:
    names = {record.name for record in run.records}
    return "input_ids" in names and bool(names & {"seq_lens", "cu_seqlens_q", "position_ids", "qkv_format"})

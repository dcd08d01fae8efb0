"""When SGLang's rules hold, and what they change about the options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

from comparator.match.runs import RecordView, RunView
from comparator.options import Options
from dumper.readers.sglang.dump import CONVERTED, SGLangDump
from dumper.readers.sglang.token_layouts import AUXILIARY_NAMES


def is_sglang_dump(run: RunView) -> bool:
    """Whether a run is a directory of SGLang's ``.pt`` files."""
    return isinstance(run, SGLangDump)


class _WithoutBatches:
    """A run without what SGLang's dumper records of every batch; everything else is the run's own."""

    def __init__(self, run: RunView) -> None:
        self._run = run
        self.records = [record for record in run.records if record.dims is not None or not _describes_batch(record)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


def _describes_batch(record: RecordView) -> bool:
    return record.name in AUXILIARY_NAMES


def without_batches(baseline: RunView, target: RunView) -> tuple[RunView, RunView]:
    """Both runs, without the records of batches where SGLang's dumper made them and the other side has none.

    They have no dims, and token layouts, by which rows are aligned, are made from them. Between two dumps of SGLang's
    they stay, as they do in its comparator.
    """
    if is_sglang_dump(baseline) and is_sglang_dump(target):
        return baseline, target
    left, right = (
        cast("RunView", _WithoutBatches(run)) if is_sglang_dump(run) or _is_converted(run) else run
        for run in (baseline, target)
    )
    return left, right


def _is_converted(run: RunView) -> bool:
    return any(CONVERTED in getattr(header, "versions", {}) for header in run.headers.values())


def adapt(options: Options, baseline: RunView, target: RunView) -> Options:
    """The options as SGLang's comparator understands them, when both sides are its dumps; else as they are.

    ``smart`` needs to know the tokens of both sides; without ``input_ids`` and what goes with them, steps are
    compared one by one.
    """
    if not (is_sglang_dump(baseline) and is_sglang_dump(target)):
        return options
    mode = options.token_aligner
    if mode == "smart" and not (_knows_tokens(baseline) and _knows_tokens(target)):
        mode = "per_step"
    return replace(
        options,
        sglang_rules=True,
        exact_integers=False,
        single_precision=True,
        first_value_only=True,
        token_aligner=mode,
    )


def skipped_names(options: Options) -> Collection[str]:
    """Names that are not compared at all: what ``smart`` aligns by."""
    return AUXILIARY_NAMES if options.token_aligner == "smart" else ()


def _knows_tokens(run: RunView) -> bool:
    names = {record.name for record in run.records}
    return "input_ids" in names and bool(names & {"seq_lens", "cu_seqlens_q", "position_ids", "qkv_format"})

"""When SGLang's rules hold, and what they change about the options."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from comparator.options import Options
from comparator.runs import RunView
from dumper.convert.sglang import SGLangDump
from dumper.convert.sglang_layouts import AUXILIARY_NAMES


def is_sglang_dump(run: RunView) -> bool:
    """Whether a run is a directory of SGLang's ``.pt`` files."""
    return isinstance(run, SGLangDump)


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

"""What is to be known of two dumps of SGLang's before they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from comparator.options import SIDES, Options, Side
from comparator.verdict.judge import Said, say
from dumper.reading.protocol import Run
from dumper.storage.places import Place

_OF_MEGATRON = frozenset({"cu_seqlens_q", "cu_seqlens_kv"})


def notes_of_dumps(given: Mapping[Side, Place], runs: Mapping[Side, Run], options: Options) -> list[Said]:
    """Which folder was taken where one holds the dump, and what of the batches is missing or assumed."""
    said = [
        say("other-folder", f"auto-descend {side}_path: {given[side]} holds the dump in {runs[side].path}", options)
        for side in SIDES
        if _resolved(given[side]) != _resolved(runs[side].path)
    ]
    if options.token_aligner != "smart":
        return said
    without = [side for side in SIDES if not _has_layouts(runs[side])]
    if without:
        message = f"{' and '.join(without)}: no record of the batches that tokens could be joined by"
        return [*said, say("no-batch-records", message, options)]
    message = "neither qkv_format nor input_ids of two dimensions say how a batch lies; it is taken for packed tokens"
    return said + [say("layout-assumed", f"{side}: {message}", options) for side in SIDES if _is_assumed(runs[side])]


def _resolved(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place


def _has_layouts(run: Run) -> bool:
    return any(run.layout(step, rank) is not None for step in run.steps for rank in run.ranks)


def _is_assumed(run: Run) -> bool:
    names = {record.name for record in run.records}
    if not names & _OF_MEGATRON or "qkv_format" in names:
        return False
    ids = next((record for record in run.records if record.name == "input_ids"), None)
    return ids is not None and len(ids.shape or ()) == 1

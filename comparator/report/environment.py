"""What differs between two runs beside their tensors: what a reader should rule out before looking for a fault."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dumper.reading.protocol import Header, Run

MOST_SHOWN = 6
"""Differences of one kind that are listed."""
_OF_ONE_LAUNCH = re.compile(r"(?i).*(port|addr|host|run[-_]?id|uuid|pid)")
"""Settings that are other in every launch, and say nothing of what it computes."""


def environment_lines(baseline: Run, target: Run) -> list[str]:
    """At most three lines: parallel layout, versions of packages, and patch configs and settings that differ."""
    left, right = _first(baseline), _first(target)
    if left is None or right is None:
        return []
    return [
        line
        for line in (
            _line("parallel layout", _sizes(left), _sizes(right)),
            _line("versions", _versions(left), _versions(right)),
            _line("settings", _settings(left), _settings(right)),
        )
        if line
    ]


def _first(run: Run) -> Header | None:
    return run.headers[min(run.headers)] if run.headers else None


def _sizes(header: Header) -> dict[str, str]:
    return {axis: str(size) for axis, (_, size) in header.parallel.items()}


def _versions(header: Header) -> dict[str, str]:
    return {**header.versions, **({"framework": header.framework} if header.framework else {})}


def _settings(header: Header) -> dict[str, str]:
    config = header.patch_config or {}
    digest = config.get("sha256")
    lasting = {name: value for name, value in header.settings.items() if not _OF_ONE_LAUNCH.fullmatch(name)}
    return {**lasting, **({"patch configs": str(digest)[:12]} if digest else {})}


def _rank(name: str) -> tuple[int, str]:
    """Order of names: weights, other facts of the model, backends that were chosen, the rest."""
    kinds = ("model.weights", "model.", "sglang.", "vllm.")
    return next((at for at, kind in enumerate(kinds) if name.startswith(kind)), len(kinds)), name


def _line(what: str, left: Mapping[str, str], right: Mapping[str, str]) -> str:
    different = [name for name in {*left, *right} if left.get(name) != right.get(name)]
    # A value that one side did not record (another engine, an older release) tells less than two that differ.
    names = sorted(different, key=lambda name: (name not in left or name not in right, *_rank(name)))
    if not names:
        return ""
    listed = [f"{name} {left.get(name, 'none')} against {right.get(name, 'none')}" for name in names[:MOST_SHOWN]]
    more = f", and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return f"{what}: {', '.join(listed)}{more}"

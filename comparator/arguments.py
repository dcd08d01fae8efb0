"""From arguments and files to ``Options``: parse what is given, and check it before a run is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from comparator.errors import ComparatorError
from comparator.messages import MESSAGES
from comparator.options import COARSE_DTYPES, DimsOverride, Options
from comparator.patterns import compiled
from tensortap.dims import DimsError, parse_dims


def check_options(options: Options) -> None:
    """Raise ComparatorError for patterns and dims that cannot be read, before any run is opened."""
    for override in options.overrides:
        compiled(override.match, "--override-dims")
        try:
            parse_dims(override.dims)
        except DimsError as error:
            raise ComparatorError(f"--override-dims: {error}") from None
    for flag, pattern in (
        ("--allow-skipped-pattern", options.allow_skipped_pattern),
        ("--allow-failed-pattern", options.allow_failed_pattern),
    ):
        if pattern is not None:
            compiled(pattern, flag)
    parse_names(sorted(options.allow), "--allow")
    parse_names(sorted(options.error), "--error")
    if not 0 <= options.min_matched <= 1:
        raise ComparatorError(f"--min-matched must be between 0 and 1, not {options.min_matched}")
    for flag, dtype in (("--activation-dtype", options.activation_dtype), ("--kv-cache-dtype", options.kv_cache_dtype)):
        if dtype is not None and dtype not in COARSE_DTYPES:
            raise ComparatorError(f"{flag}: {dtype!r} is none of {', '.join(COARSE_DTYPES)}")


def parse_override(argument: str, side: Literal["both", "baseline", "target"]) -> DimsOverride:
    """Read ``NAME:DIMS``; raises ComparatorError when one of them is missing."""
    name, _, dims = (part.strip() for part in argument.partition(":"))
    if not name or not dims:
        raise ComparatorError(f"{argument!r} is no override; expected NAME:DIMS, for example 'attn_output:t h[tp]'")
    return DimsOverride(name, dims, side)


def load_override_config(path: Path) -> tuple[DimsOverride, ...]:
    """Read a YAML file ``overrides: [{match, dims, side}]``; raises ComparatorError that names file and key."""
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ComparatorError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ComparatorError(f"{path} is not valid YAML: {error}") from None
    if content is None:
        return ()
    entries = content.get("overrides") if isinstance(content, dict) else None
    if not isinstance(content, dict) or set(content) - {"overrides"} or not isinstance(entries or [], list):
        raise ComparatorError(f"{path}: expected one key 'overrides' with a list of {{match, dims, side}}")
    return tuple(_read_override(entry, index, path) for index, entry in enumerate(entries or []))


def _read_override(entry: Any, index: int, path: Path) -> DimsOverride:
    where = f"{path}: overrides[{index}]"
    if not isinstance(entry, dict):
        raise ComparatorError(f"{where} is no mapping; expected {{match, dims, side}}")
    unknown = sorted(set(entry) - {"match", "dims", "side"})
    if unknown:
        raise ComparatorError(f"{where}: unknown key {unknown[0]!r}; known are match, dims and side")
    for key in ("match", "dims"):
        if not isinstance(entry.get(key), str):
            raise ComparatorError(f"{where}: {key!r} must be a string")
    side = entry.get("side", "both")
    if side not in ("both", "baseline", "target"):
        raise ComparatorError(f"{where}: side must be both, baseline or target, not {side!r}")
    return DimsOverride(entry["match"], entry["dims"], side)


def parse_names(names: Sequence[str], flag: str) -> frozenset[str]:
    """Names of messages; raises ComparatorError, with the nearest ones, for a name that is none."""
    for name in names:
        if name not in MESSAGES:
            import difflib

            near = difflib.get_close_matches(name, MESSAGES, n=3) or sorted(MESSAGES)
            raise ComparatorError(f"{flag}: no message is called {name!r}; there are {', '.join(near)}")
    return frozenset(names)

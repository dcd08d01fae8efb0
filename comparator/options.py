"""Everything that can be chosen about a comparison, as one frozen value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from comparator.dims import parse_dims
from comparator.errors import ComparatorError, DimsError
from comparator.plan.tokens.interface import Side, TokenMode
from comparator.verdict.criteria import ThresholdRule, check_pattern


@dataclass(frozen=True)
class DimsOverride:
    """Dims for every tensor whose name ``match`` (a regular expression) is found in, in place of recorded ones."""

    match: str
    dims: str
    side: Literal["both", "baseline", "target"] = "both"


@dataclass(frozen=True)
class Options:
    """How two runs are compared. The defaults are those of the command line without flags."""

    start_step: int = 0
    end_step: int = 1_000_000
    filter: str | None = None
    """Regular expression, searched in ``step=…___rank=…___name=…___layer_id=…``."""
    grouping_skip_keys: frozenset[str] = frozenset({"rank"})
    """What does not tell bundles apart: with ``rank``, the records of all ranks make one tensor."""
    token_aligner: TokenMode = "per_step"
    diff_threshold: tuple[ThresholdRule, ...] = ()
    """First match wins; empty: the default criterion for every tensor."""
    overrides: tuple[DimsOverride, ...] = ()
    """First match wins."""
    allow_skipped_pattern: str = ".*"
    allow_failed_pattern: str | None = None
    strict_taps: bool = False
    equal_nan: bool = False
    """NaN equals NaN, and an infinity itself, at the same place."""
    min_matched: float = 1.0
    """Smallest share of the tokens computed on both sides that must have been compared."""
    detail_limit: int = 50
    """Failures for which percentiles are computed."""
    map_config: Path | None = None
    exact_integers: bool = True
    """Integers and booleans must be equal unless a threshold rule matches them."""
    single_precision: bool = False
    """Compare float64 and integers in float32 (what SGLang's comparator does)."""
    first_value_only: bool = False
    """Of values that are no tensors, compare the first rank's only."""
    sglang_rules: bool = False
    """Both sides are SGLang's own dumps, and ``comparator.sglang_compat`` judges them; steps are then joined only
    where ``grouping_skip_keys`` say so."""

    def dims_for(self, name: str, recorded: str | None, side: Side) -> str | None:
        """The dims that hold for a tensor on one side."""
        for override in self.overrides:
            if override.side in ("both", side) and re.search(override.match, name):
                return override.dims
        return recorded

    @property
    def joins_steps(self) -> bool:
        """Whether all steps of a tensor are compared as one."""
        return self.token_aligner != "per_step" and (not self.sglang_rules or "step" in self.grouping_skip_keys)


def check_options(options: Options) -> None:
    """Raise ComparatorError for patterns and dims that cannot be read, before any run is opened."""
    for override in options.overrides:
        check_pattern(override.match, "--override-dims")
        try:
            parse_dims(override.dims)
        except DimsError as error:
            raise ComparatorError(f"--override-dims: {error}") from None
    for flag, pattern in (
        ("--filter", options.filter),
        ("--allow-skipped-pattern", options.allow_skipped_pattern),
        ("--allow-failed-pattern", options.allow_failed_pattern),
    ):
        if pattern is not None:
            check_pattern(pattern, flag)
    if not 0 <= options.min_matched <= 1:
        raise ComparatorError(f"--min-matched must be between 0 and 1, not {options.min_matched}")


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

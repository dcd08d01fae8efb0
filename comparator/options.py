"""Everything that can be chosen about a comparison, as one frozen value."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct

from comparator.patterns import search

Side = Literal["baseline", "target"]
SIDES: tuple[Side, Side] = ("baseline", "target")
TokenMode = Literal["per_step", "concat_steps", "smart"]
CoarseDtype = Literal["none", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int8"]
"""What a quantised model may round values to on the way."""
COARSE_DTYPES: tuple[CoarseDtype, ...] = get_args(CoarseDtype)


class ThresholdRule(Struct, frozen=True):
    """The criterion for tensors whose whole name matches ``pattern``."""

    pattern: str
    predicate: str


class DimsOverride(Struct, frozen=True):
    """Dims for every tensor whose name ``match`` (a regular expression) is found in, in place of recorded ones."""

    match: str
    dims: str
    side: Literal["both", "baseline", "target"] = "both"


class Options(Struct, frozen=True):
    """How two runs are compared. The defaults are those of the command line without flags."""

    start_step: int = 0
    end_step: int = 1_000_000
    filter: str | None = None
    """Which records are compared: an expression as for ``dumper ls --filter`` (``name == "x" and layer_id < 2``);
    between two of SGLang's dumps the regular expression of its comparator, searched in file names."""
    grouping_skip_keys: frozenset[str] = frozenset({"rank"})
    """What does not tell bundles apart: with ``rank``, the records of all ranks make one tensor."""
    token_aligner: TokenMode = "per_step"
    diff_threshold: tuple[ThresholdRule, ...] = ()
    """First match wins; empty: the default criterion for every tensor."""
    overrides: tuple[DimsOverride, ...] = ()
    """First match wins."""
    allow_skipped_pattern: str | None = None
    """Whole names that may be skipped; None: all, but for a name of which both sides recorded something."""
    allow_failed_pattern: str | None = None
    strict_taps: bool = False
    equal_nan: bool = False
    """NaN equals NaN, and an infinity itself, at the same place."""
    quick: bool = False
    """Pairs whose records have equal checksums on both sides are not read (docs/comparing.md)."""
    bitwise: bool = False
    """Tensors must be equal bit by bit; nothing else is asked for."""
    min_matched: float = 1.0
    """Smallest share of the tokens computed on both sides that must have been compared."""
    activation_dtype: CoarseDtype | None = None
    """What both runs round inputs of matrix products to; None: what their headers say."""
    kv_cache_dtype: CoarseDtype | None = None
    """The same of cached keys and values."""
    detail_limit: int = 50
    """Failures, the first ones, for which percentiles are computed and pictures drawn; any number below 0: all."""
    per_token: bool = False
    """Report the ``rel`` of every token."""
    samples: bool = True
    """Whether findings on two of SGLang's dumps hold what only its report shows: the first values of both sides as
    text, and how a pair was put together."""
    records: bool = True
    """Whether findings on tensors list the records that they were made from."""
    memory: int | None = None
    """Bytes that comparing may take, in all processes of a machine together; tensors for which it is not enough are
    read some rows at a time. None: what is free."""
    map_config: Path | None = None
    allow: frozenset[str] = frozenset()
    """Names of messages (``comparator.messages``) that do not make a comparison fail."""
    error: frozenset[str] = frozenset()
    """Names of messages that do."""

    def dims_for(self, name: str, recorded: str | None, side: Side) -> str | None:
        """The dims that hold for a tensor on one side."""
        for override in self.overrides:
            if override.side in ("both", side) and search(override.match, name):
                return override.dims
        return recorded

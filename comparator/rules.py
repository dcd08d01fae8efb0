"""What differs between two ways to compare, as one frozen value that every stage consults.

``OUR_RULES`` hold for our own runs; ``SGLANG_RULES`` where both sides are dumps of SGLang's own dumper, so that whoever
moves from its comparator keeps verdicts and exit codes. ``docs/coming-from-sglang.md`` lists where the two part.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from comparator.options import Options


class Rules(Struct, frozen=True):
    """One way to compare. The defaults are our own."""

    grouping: Literal["tags", "file_names"] = "tags"
    """What tells bundles apart: name, tags, stream and occurrence on both sides; or every key of the target's file
    names. By file names the target chooses: what only the baseline has is not listed, and neither the range of steps
    nor the filter applies to the baseline."""
    joining: Literal["tokens", "rows"] = "tokens"
    """How shards and steps become one tensor: by token layouts and token identity, with padding left out; or as the
    rows lie, by what each file says of its rank, steps one after the other and cut to the shorter side."""
    rounding: Literal["float64", "torch"] = "float64"
    """Sums in float64 over the values as they are; or the metrics and the sums of partial tensors as torch rounds them
    in single precision."""
    single_precision: bool = False
    """float64 and integers are compared in float32."""
    exact_integers: bool = True
    """Integers and booleans must be equal unless a threshold rule matches them."""
    identical_replicas: bool = True
    """Replicas with the same bytes agree even where they hold NaN."""
    values: Literal["structural", "first_raw"] = "structural"
    """Values that are no tensors are compared structurally, and all ranks of a side must agree; or the first rank's
    with ``==``, as the file holds it."""
    first_value_only: bool = False
    """Of values, compare the first rank's only."""
    token_metrics: bool = True
    """Measure every token by itself too."""
    strict_runs: bool = True
    """Damaged and incomplete runs, and whatever was left out for a reason that could hide a fault, fail a
    comparison."""
    whole_table: bool = True
    """Verdicts come when everything is measured, so that they may look at other pairs; else pair by pair."""


OUR_RULES = Rules()
SGLANG_RULES = Rules(
    grouping="file_names",
    joining="rows",
    rounding="torch",
    single_precision=True,
    exact_integers=False,
    identical_replicas=False,
    values="first_raw",
    first_value_only=True,
    token_metrics=False,
    strict_runs=False,
    whole_table=False,
)
SGLANG_RULES_BY_TOKEN = replace(
    SGLANG_RULES, joining="tokens", rounding="float64", identical_replicas=True, values="structural", token_metrics=True
)
"""For pairs of SGLang's dumps that its rules have no answer for: joined by token, as ours are."""


def joins_steps(options: Options, rules: Rules) -> bool:
    """Whether all steps of a tensor are compared as one: by file names only where these leave the step out."""
    grouped = rules.grouping == "tags" or "step" in options.grouping_skip_keys
    return options.token_aligner != "per_step" and grouped

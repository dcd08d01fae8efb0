"""How far replicas are from the one that is used."""

from __future__ import annotations

from collections.abc import Iterator

from comparator.align.unshard import Replicas
from comparator.measure.difference import measure, same_bytes
from comparator.measure.measurement import ReplicaNumbers
from comparator.measure.torch_rounding import compare_as_torch
from comparator.options import Side
from comparator.rules import Rules


def measure_replicas(side: Side, found: Replicas, rules: Rules) -> Iterator[ReplicaNumbers]:
    """Measure every replica of a group against its first one."""
    first, *others = found.members
    for index, other in enumerate(others, start=1):
        if other.shape != first.shape:
            yield ReplicaNumbers(side, found.axis, found.group, index, None, False)
            continue
        as_torch = rules.rounding == "torch"
        difference = compare_as_torch(first, other).difference if as_torch else measure(first, other)
        identical = rules.identical_replicas and difference.max_abs != 0 and same_bytes(first, other)
        yield ReplicaNumbers(side, found.axis, found.group, index, difference, identical)

"""Align the dimensions of two whole tensors by their names.

The target's order of dimensions is taken. A dimension that is fused on one side and split on the other is fused on
both; squeezed dimensions (``1``) go; ``s`` and ``t`` are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from comparator.errors import PairError
from tensortap.dims import SEQUENCE, TOKEN, Dimension

VOCABULARY = "vocab"
"""The dimension of logits, as the shipped configs call it."""


class SideAxes(Struct, frozen=True, dict=True):
    """What to do with one side: transpose, then merge neighbours."""

    names: tuple[str, ...]
    """Names of the dimensions as they come in, for the report."""
    drop: tuple[int, ...]
    """Dimensions of length 1 that go first."""
    order: tuple[int, ...]
    """The permutation of what is left."""
    merge: tuple[int, ...]
    """How many neighbours, after the permutation, make each dimension of the result."""
    cut: tuple[int, int] | None = None
    """A dimension of the result, and how much of it is taken from its beginning."""

    @cached_property
    def identity(self) -> bool:
        return (
            not self.drop
            and self.cut is None
            and self.order == tuple(range(len(self.order)))
            and all(count == 1 for count in self.merge)
        )


class AxesPlan(Struct, frozen=True):
    """Both sides brought to the dimensions ``result``."""

    baseline: SideAxes
    target: SideAxes
    result: tuple[str, ...]
    padded: tuple[int, int] | None = None
    """Lengths of the vocabulary on both sides where one of them is padded."""


def aligned_shape(shape: Sequence[int], side: SideAxes) -> list[int]:
    """The shape that a side of ``shape`` has once its axes are aligned, before anything is cut."""
    kept = [length for at, length in enumerate(shape) if at not in side.drop]
    ordered = [kept[at] for at in side.order]
    lengths: list[int] = []
    at = 0
    for count in side.merge:
        lengths.append(math.prod(ordered[at : at + count]))
        at += count
    return lengths


def without_padding(plan: AxesPlan, baseline: Sequence[int], target: Sequence[int]) -> AxesPlan:
    """The plan with the longer vocabulary cut to the shorter: trainers pad it, for ranks to have equal parts.

    ``baseline`` and ``target`` are the shapes before the axes are aligned. What is twice as long is another vocabulary.
    """
    if VOCABULARY not in plan.result:
        return plan
    at = plan.result.index(VOCABULARY)
    left, right = aligned_shape(baseline, plan.baseline)[at], aligned_shape(target, plan.target)[at]
    if left == right or 2 * min(left, right) <= max(left, right):
        return plan
    if left > right:
        return replace(plan, baseline=replace(plan.baseline, cut=(at, right)), padded=(left, right))
    return replace(plan, target=replace(plan.target, cut=(at, left)), padded=(left, right))


def plan_axes(baseline: Sequence[Dimension], target: Sequence[Dimension]) -> AxesPlan:
    """Plan the alignment of two lists of named dimensions.

    Raises PairError when the sides name other dimensions, or fuse dimensions in ways that overlap.
    """
    groups = _fused_groups([*baseline, *target])
    left, right = _atoms(baseline), _atoms(target)
    if set(left) != set(right):
        raise PairError(
            f"the dimensions differ: baseline has {_written(baseline)!r}, target has {_written(target)!r}",
            hint="give dims that name the same dimensions with --override-baseline-dims or --override-target-dims",
        )
    result: list[tuple[str, ...]] = []
    taken: set[str] = set()
    for dimension in target:
        if dimension.squeezed:
            continue
        names = _normal(dimension.names)
        if names[0] in taken:
            continue
        group = groups.get(names[0], names)
        result.append(group)
        taken.update(group)
    return AxesPlan(
        _plan_side(baseline, result),
        _plan_side(target, result),
        tuple("*".join(group) for group in result),
    )


def _normal(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(SEQUENCE if name == TOKEN else name for name in names)


def _atoms(dimensions: Sequence[Dimension]) -> list[str]:
    return [name for dimension in dimensions if not dimension.squeezed for name in _normal(dimension.names)]


def _written(dimensions: Sequence[Dimension]) -> str:
    return " ".join(dimension.label for dimension in dimensions)


def _fused_groups(dimensions: Sequence[Dimension]) -> Mapping[str, tuple[str, ...]]:
    """For each name in a fused dimension the whole group."""
    groups: dict[str, tuple[str, ...]] = {}
    for dimension in dimensions:
        if not dimension.fused:
            continue
        names = _normal(dimension.names)
        for name in names:
            other = groups.setdefault(name, names)
            if other != names:
                raise PairError(
                    f"({'*'.join(other)}) and ({'*'.join(names)}) fuse {name!r} in two ways that do not fit together",
                    hint="write the fused dimension in the same order on both sides",
                )
    return groups


def _plan_side(dimensions: Sequence[Dimension], result: Sequence[tuple[str, ...]]) -> SideAxes:
    drop = tuple(index for index, dimension in enumerate(dimensions) if dimension.squeezed)
    kept = [_normal(dimension.names) for dimension in dimensions if not dimension.squeezed]
    order: list[int] = []
    merge: list[int] = []
    for group in result:
        if group in kept:
            order.append(kept.index(group))
            merge.append(1)
        else:
            order.extend(kept.index((name,)) for name in group)
            merge.append(len(group))
    return SideAxes(tuple(dimension.label for dimension in dimensions), drop, tuple(order), tuple(merge))

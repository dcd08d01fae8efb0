"""Runs that train: from the second step on, each side computes with weights that its own optimizer has changed.

An optimizer makes more of small differences: Adam divides each element of a gradient by its size, so that an element
which is nearly zero, and so is rounding for the most part, moves its weight as far as any other. The share of such
elements is that of rounding in the gradient, and the energy of what they add is in proportion to it: errors of weights
go with the root of a unit roundoff, in single elements, which no test of rows and channels tells from a fault. So these
tests look at the steps until the first update, and what comes behind it is held against one limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct

from comparator.diagnosis.floors import rounding_error, unit_roundoff
from comparator.diagnosis.kernel import to_single
from comparator.diagnosis.tap_graph import PARAMETERS
from comparator.match.bundles import BundlePair, Key
from comparator.measure.family import FamilyRows
from comparator.measure.kernel.sums import Array
from dumper.reading.protocol import Run
from tensortap.distinct import distinct
from tensortap.lazy_rows import is_lazy

_GRADIENT = ("stream", "grad")
ROOTS = 4.0
"""The relative L2 error that is left to the weights, and to what is computed with them, in roots of a unit roundoff."""
LARGEST = 0.06
"""And at most."""
UPDATE_ROOTS, LARGEST_SHARE = 100.0, 0.5
"""The same of weights, of what training has changed of them: a learning rate may be so small that the weights hide it.
Weights that were not updated at all differ by the whole."""
ROUNDINGS = 2.0
"""So many of them are left to weights as they are stored, beside that."""


def is_gradient(family: Key) -> bool:
    """Whether a family is of gradients."""
    return _GRADIENT in family


def is_parameter(family: Key) -> bool:
    """Whether a family is of weights."""
    return not is_gradient(family) and str(family[0][1]).startswith(PARAMETERS)


def last_step_of_equal_weights(pairs: Sequence[BundlePair], runs: Sequence[Run]) -> int | None:
    """The step behind which weights were updated, as the runs say. Where they know of no optimizer the first of which
    both sides have gradients: it may be one of the program's own. None where nothing is behind an update."""
    updated = [first for run in runs if (first := next(filter(run.updates, run.steps), None)) is not None]
    compared = [pair for pair in pairs if pair.baseline is not None and pair.target is not None]
    if updated:
        found: int | None = min(updated) - 1
    else:
        of_gradients = (step for pair in compared if is_gradient(pair.family) for step in _steps(pair))
        found = min((step for step in of_gradients if step is not None), default=None)
    return found if found is not None and any(is_behind_update(pair, found) for pair in compared) else None


def _steps(pair: BundlePair) -> Sequence[int | None]:
    return (pair.step,) if pair.step is not None or pair.target is None else pair.target.steps


def is_behind_update(pair: BundlePair, first: int | None) -> bool:
    """Whether weights may have been updated before a pair was computed, or that it is one of them."""
    if first is None:
        return False
    if is_parameter(pair.family):
        return True
    return any(step is not None and step > first for step in _steps(pair))


class Drift(Struct, frozen=True):
    """How far the weights of one parameter are apart, and how far they have come; L2 norms."""

    error: float
    update: float
    """What training has changed of the baseline's since the first step of which they were recorded."""
    rounding: float
    """Of storing the weights on both sides."""
    share: float
    """Of the update that the error may have."""

    @property
    def predicate(self) -> str:
        return f"error of {self.share:.3g} of the update at most"

    @property
    def passed(self) -> bool:
        return self.error <= self.share * self.update + ROUNDINGS * self.rounding


def drifts_of(found: FamilyRows, computed: Sequence[str]) -> dict[int, Drift]:
    """Of one parameter, by step, but for the first; none where it is read some rows at a time. ``computed``: the types
    in which both sides compute."""
    steps = distinct(found.step)
    if len(steps) < 2 or is_lazy(found.baseline) or is_lazy(found.target):
        return {}
    dtypes = found.baseline.dtype.name, found.target.dtype.name
    share = min(LARGEST_SHARE, UPDATE_ROOTS * math.sqrt(max(map(unit_roundoff, (*dtypes, *computed)))))
    rounding = math.hypot(*map(rounding_error, dtypes))
    start = to_single(found.baseline[found.step == steps[0]])
    drifts = {}
    for step in steps[1:].tolist():
        rows = found.step == step
        baseline, target = to_single(found.baseline[rows]), to_single(found.target[rows])
        if baseline.shape == start.shape:
            error, update, size = map(_norm, (target - baseline, baseline - start, baseline))
            drifts[step] = Drift(error, update, rounding * size, share)
    return drifts


def _norm(values: Array) -> float:
    return math.sqrt(float(np.einsum("ij,ij->", values, values, dtype=np.float64)))


def limit(dtypes: Iterable[str]) -> str:
    """The criterion for what is behind an update, in a run that computes in ``dtypes``."""
    coarsest = max(map(unit_roundoff, dtypes), default=unit_roundoff("float32"))
    return f"relative_l2 <= {min(LARGEST, ROOTS * math.sqrt(coarsest)):.2g}"

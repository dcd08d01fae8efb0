"""Gradients of values where the batch is spread over ranks: each rank's loss is a mean over its own samples, and there
are fewer of them, and a value has a larger gradient by the number of ranks. Parameters, whose gradients are averaged
over ranks, have the same.

Whether it is so nothing says but the gradients themselves. One pair, the first that has one, is asked, and all others
are held against what it says, so that a factor which comes in further down is a difference as any other. A factor that
is wrong from the start on shows in the gradients of parameters: without these nothing is divided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from comparator.align.aligned import align
from comparator.errors import ComparatorError, PairError
from comparator.match.bundles import BundlePair
from comparator.measure.kernel.sums import Array
from comparator.options import Options, Side
from comparator.plan.facts import Remark
from comparator.plan.planner import Planner
from comparator.rules import Rules
from tensortap.dims import DimsError, parse_dims

_GRADIENT = ("stream", "grad")
_PARAMETERS = ("param.", "param__")
_WITHIN = ("tp", "sp")
"""What names of axes end with whose ranks have parts of the same tokens, of which they compute one loss."""
_NEAR = 0.1
"""How far, as a share, a factor may be from the number of ranks: errors may come beside it."""


def is_of_value(pair: BundlePair) -> bool:
    """Whether a pair is of gradients of a value, and not of a parameter."""
    return _GRADIENT in pair.family and not pair.name.startswith(_PARAMETERS)


def divided(values: Array, factor: float) -> Array:
    """Gradients of the target as large as those of the baseline; exact where ``factor`` is a power of two."""
    if factor == 1 or values.dtype.kind in "iub":
        return values
    wide = values if values.dtype.kind == "c" or values.itemsize > 4 else values.astype(np.float32)
    return (wide / wide.dtype.type(factor)).astype(values.dtype, copy=False)


def factor_of_gradients(
    pairs: Sequence[BundlePair], planner: Planner, options: Options, rules: Rules
) -> tuple[float, Remark | None]:
    """By what gradients of values of the target are divided, and what is to be said of it."""
    if rules.grouping != "tags" or options.bitwise:
        return 1, None
    both = [
        pair for pair in pairs if pair.baseline is not None and pair.target is not None and _GRADIENT in pair.family
    ]
    first = next((pair for pair in both if is_of_value(pair)), None)
    ratios = [] if first is None else _ratios(first, planner, options)
    if first is None or not ratios:
        return 1, None
    scale = _scale(first, planner, rules)
    if scale is None:
        return 1, None
    factor = min((1.0, *ratios), key=lambda ratio: abs(math.log(scale / ratio)))
    if factor == 1 or abs(scale / factor - 1) > _NEAR:
        return 1, None
    more, times = ("target", factor) if factor > 1 else ("baseline", 1 / factor)
    why = (
        f"gradients of values are {times:g} times as large in the {more}, whose batch is spread over {times:g} times "
        "as many ranks: each rank's loss is a mean over its own part"
    )
    if any(not is_of_value(pair) for pair in both):
        return factor, Remark(
            "gradients-of-ranks", f"{why}. They are compared without that factor; those of parameters as they are"
        )
    return 1, Remark(
        "gradients-of-ranks",
        f"{why}, or the loss is wrong by that factor: gradients of parameters (dumper.dump_model) would tell, and were "
        "not recorded by both",
    )


def _ratios(pair: BundlePair, planner: Planner, options: Options) -> list[float]:
    """What the numbers of ranks over which the batch is spread may make of the gradients of a pair."""
    assert pair.baseline is not None
    assert pair.target is not None
    left = _spread(pair.baseline.dims(pair.name, "baseline", options), planner, "baseline")
    right = _spread(pair.target.dims(pair.name, "target", options), planner, "target")
    axes = sorted(axis for axis in {*left, *right} if left.get(axis, 1) != right.get(axis, 1))
    chosen = itertools.chain.from_iterable(itertools.combinations(axes, count + 1) for count in range(len(axes)))
    found = {math.prod(right.get(axis, 1) / left.get(axis, 1) for axis in some) for some in chosen}
    return sorted(found - {1.0})


def _spread(text: str | None, planner: Planner, side: Side) -> Mapping[str, int]:
    """The sizes of the axes over which dims say that samples or tokens are split."""
    try:
        dims = None if text is None else parse_dims(text)
    except DimsError:
        return {}
    if dims is None:
        return {}
    sizes: dict[str, int] = {}
    for coordinates in planner.contexts[side].world.values():
        sizes.update({axis: size for axis, (_, size) in coordinates.items()})
    split = (one.axis for at in dims.token_dimensions for one in dims.dimensions[at].modifiers if not one.partial)
    return {axis: sizes.get(axis, 1) for axis in split if not axis.endswith(_WITHIN)}


def _scale(pair: BundlePair, planner: Planner, rules: Rules) -> float | None:
    """By what the target's gradients are larger than the baseline's, in least squares; None where nothing tells."""
    try:
        aligned = align(planner.plan(pair, rules), pair, planner.contexts, rules)
    except (ComparatorError, PairError, DimsError, ValueError):
        return None  # its own measurement says why
    if not aligned.same_shape or aligned.baseline.dtype.kind in "iubc":
        return None
    left, right = (np.asarray(side, np.float64).reshape(-1) for side in (aligned.baseline, aligned.target))
    size = float(left @ left)
    scale = float(left @ right) / size if size else 0.0
    return scale if scale > 0 and math.isfinite(scale) else None

"""How much two right computations of one operation may differ: floor and gain from dtype, length and ranks.

The model is that of probabilistic rounding analysis (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): roundings are
independent with mean zero, so their variances add. ``docs/tolerances.md`` derives the numbers and lists what was
measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Operation = Literal[
    "source", "embedding", "attention", "linear", "sum", "sum_without_identity", "mlp", "moe", "combine", "router",
    "norm", "logits", "recurrence", "encoder", "unseen", "unknown",
]  # fmt: skip
"""What a tap computes. ``source``: nothing recorded comes before it. ``embedding``: the first layer's input, a row of a
table for each token, which nothing comes before either. ``combine``: what a mixture of experts does after its experts.
``recurrence``: a state space or linear attention. ``encoder``: rows of images or sound, whose layers were not
recorded (``encoded``). ``unseen``: the stream behind layers of which nothing was recorded, or one map behind it.
``unknown``: a tap of which nothing but the order of execution is known."""

UNIT_ROUNDOFF: Mapping[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8_e4m3fn": 2.0**-4,
    "float8_e4m3fnuz": 2.0**-4,
    "float8_e4m3": 2.0**-4,
    "float8_e5m2": 2.0**-3,
    "float8_e5m2fnuz": 2.0**-3,
}
"""Half the distance from 1 to the next number."""

RMS_ROUNDING = 2 / math.sqrt(12 * 7 / 3)
"""Relative L2 error of one rounding, in unit roundoffs: error uniform in the last place, significand uniform in [1, 2).
"""

ROUNDINGS: Mapping[Operation, float] = {
    "source": 1.5,
    "embedding": 1.5,
    "sum": 1.5,
    "combine": 1.5,
    "linear": 2,
    "norm": 2,
    "logits": 2,
    "router": 4,
    "sum_without_identity": 4,
    "mlp": 8,
    "moe": 8,
    "attention": 15,
    "recurrence": 15,
    "encoder": 1.5,
    "unseen": 1.5,
    "unknown": 15,
}
"""Values stored on the way from the recorded inputs to the recorded output, on one side. A sum has one, and half of
one for an operand that was rounded between its tap and the sum. Attention: norm 2, q, k, v 3, their norms 4, rotation
4, probabilities 1, heads 1."""

GAIN: Mapping[Operation, float] = {
    "source": 0.0,
    "embedding": 0.0,
    "sum": 0.0,
    "combine": 1.05,
    "linear": 1.05,
    "norm": 1.05,
    "logits": 1.05,
    "attention": 1.1,
    "router": 1.2,
    "sum_without_identity": 1.6,
    "mlp": 1.6,
    "moe": 2.1,
    "recurrence": 2.1,
    "encoder": 0.0,
    "unseen": 0.0,
    "unknown": 2.1,
}
"""How much an operation may magnify the relative error of its input. A linear map keeps it on average; a gated MLP
multiplies two factors that both have it, and weights of experts come on top."""

_DEFAULT_LENGTH = 4096


PRODUCTS: Mapping[Operation, int] = {
    "attention": 3, "recurrence": 3, "linear": 1, "mlp": 3, "moe": 3, "combine": 3, "unknown": 3,
}  # fmt: skip
"""Matrix products on the way whose inputs a quantised model rounds: of q, k and v, of gate, up and down. Those of one
input round it alike, but each hands it on in its own way. A router and the logits are left as they are, and ``combine``
may add a shared expert."""
_CACHED: frozenset[Operation] = frozenset({"attention", "unknown"})
"""Read keys and values, which are two, from a cache."""
_QUANTISED_ROUNDOFF: Mapping[str, float] = {"int8": 2.0**-4, "float4_e2m1fn": 2.0**-2}
"""Of formats that no tap has. The steps of int8 are those of the largest value that shares a scale: with one ten times
as large as the rms they are as coarse as those of ``float8_e4m3fn``."""
QUANTISED = ("float8_e4m3fn", "float8_e5m2", *_QUANTISED_ROUNDOFF)
"""What values may be rounded to on the way."""
Sides = tuple[str | None, str | None]
"""Of baseline and target; None where they are not rounded."""


class Quantisation(Struct, frozen=True):
    """What a model rounds values to, beside the dtype that it computes in; names of ``QUANTISED``."""

    activations: Sides = (None, None)
    """Inputs of matrix products."""
    cache: Sides = (None, None)
    """Keys and values."""

    def roundings(self, operation: Operation) -> float:
        """Their variance, relative to the output, of both sides.

        An input that differs by rounding alone may land on the next number of the coarse format, so that two clean
        runs differ by up to what two independent roundings do. Where one side alone has it, weights are rounded, too.
        """
        weights = 2 if self.activations[0] != self.activations[1] else 1
        products = PRODUCTS.get(operation, 0) * weights * sum(map(_coarse, self.activations))
        return products + (2 * sum(map(_coarse, self.cache)) if operation in _CACHED else 0.0)


EXACT = Quantisation()
"""Of models that are not quantised, or in their weights alone."""


def _coarse(dtype: str | None) -> float:
    if dtype is None:
        return 0.0
    return (RMS_ROUNDING * _QUANTISED_ROUNDOFF.get(dtype, UNIT_ROUNDOFF.get(dtype, 0.0))) ** 2


class Floor(Struct, frozen=True):
    """What rounding explains: an output error of sqrt((gain · inherited)² + floor²)."""

    floor: float
    """Relative L2 error of a row when the inputs agree exactly."""
    gain: float


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number; an unknown dtype counts as float32."""
    return UNIT_ROUNDOFF.get(dtype.removeprefix("torch."), UNIT_ROUNDOFF["float32"])


def rounding_error(dtype: str) -> float:
    """Relative L2 error of storing a value in ``dtype`` once."""
    return RMS_ROUNDING * unit_roundoff(dtype)


def roundings_of_ranks(ranks: int) -> float:
    """Roundings, relative to the whole, of a running sum over the partial sums of ``ranks`` ranks.

    The j-th addition rounds a sum of j of them, whose variance is j / ranks of the whole.
    """
    return sum(j / ranks for j in range(2, ranks + 1))


def floor_for(
    operation: Operation,
    baseline_dtype: str,
    target_dtype: str,
    *,
    ranks: int = 1,
    length: int | None = None,
    quantisation: Quantisation = EXACT,
    unseen: int = 0,
) -> Floor:
    """Floor and gain of an operation.

    ``unseen``: layers before it that were not recorded, each of which may add to the stream what an unknown operation
    does.

    ``ranks``: partial sums that were added in the dtype itself. ``length``: terms of the sums that were accumulated in
    float32, whose error grows with the root of the length.
    """
    stored = rounding_error(baseline_dtype) ** 2 + rounding_error(target_dtype) ** 2
    count = ROUNDINGS[operation] + roundings_of_ranks(ranks)
    accumulated = 2 * rounding_error("float32") ** 2 * (length or _DEFAULT_LENGTH) / 2
    own = count * stored + accumulated + quantisation.roundings(operation)
    layer = ROUNDINGS["unknown"] * stored + accumulated + quantisation.roundings("unknown")
    before = max(GAIN[operation], 1.0) ** 2 * unseen * layer
    return Floor(math.sqrt(own + before), GAIN[operation])

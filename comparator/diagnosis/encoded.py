"""Taps some of whose rows come out of an encoder of images or sound, which nothing recorded comes before.

Into a layer goes a row of a table for each token of the text, which no right run has otherwise, and for a piece of an
image what a tower of layers made of it, with the error of all of these. Each kind of rows is judged by itself, so that
the one is no measure of the other.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec.structs import replace

from comparator.diagnosis.floors import floor_for
from comparator.diagnosis.kernel import median
from comparator.diagnosis.profiling import measure
from comparator.diagnosis.tap_graph import TapNode
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.tap_rows import Mask, SideRows, TapRows
from tensortap.lazy_rows import is_lazy

BLOCKS = 32
"""Layers of an encoder whose errors are allowed to add up, as that many operations of which nothing is known."""
OVER_MEDIAN = 1.5
"""The floor of an encoder's rows over their median error: what their depth explains is not known otherwise."""


def profile(tap: TapRows, node: TapNode) -> TapProfile:
    """Measure one tap of a pair, as ``measure`` does; where ``tap.encoded`` names rows, and what an encoder made comes
    in at this tap, with a profile of its own of either kind of rows."""
    whole, rows = measure(tap, node), tap.encoded
    if rows is None or whole.identical or not rows.any():
        return whole
    text = None if rows.all() else _taken(tap, ~rows)
    if node.operation in ("embedding", "source", "unseen"):
        encoded = measure(_taken(tap, rows), TapNode(node.key, "encoder", quantisation=node.quantisation))
    elif node.operation == "sum" and node.branch is None and text is not None:
        # Some models add what an encoder made to the rows of its images behind their first layers as well.
        encoded = measure(_taken(tap, rows), node)
        if encoded.identical or encoded.operation != "sum_without_identity":
            return whole
    else:
        return whole
    of_text = None if text is None else measure(text, node)
    if node.operation == "sum" and (of_text is None or of_text.operation != "sum"):
        return whole  # it is no sum in any row: a norm lies between
    encoded = replace(encoded, extra_floor=np.hypot(encoded.extra_floor, _floor(encoded, node)))
    extra = whole.extra_floor.copy()
    extra[rows] = encoded.extra_floor
    return replace(whole, extra_floor=extra, parts=(encoded,) if of_text is None else (of_text, encoded))


def _floor(encoded: TapProfile, node: TapNode) -> float:
    """Relative error that the layers of the encoder explain: what most of its rows have, within what one operation may
    have and a deep encoder."""
    one = floor_for(
        "unknown",
        encoded.baseline_dtype,
        encoded.target_dtype,
        ranks=encoded.ranks,
        length=encoded.reduction_length,
        quantisation=node.quantisation,
    ).floor
    return min(max(OVER_MEDIAN * median(encoded.added), one), math.sqrt(BLOCKS) * one)


def _taken(tap: TapRows, rows: Mask) -> TapRows:
    labels, chosen = tap.values.labels, np.flatnonzero(rows)
    sides = (tap.values.baseline, tap.values.target)
    baseline, target = (one.take(chosen) if is_lazy(one) else one[chosen] for one in sides)
    values = SideRows(baseline, target, labels.taken(chosen))
    return replace(tap, values=values, look=None, encoded=None)

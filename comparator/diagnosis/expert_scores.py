"""The scores by which a router chooses experts, and how near the choice is to another one.

DeepSeek-V2 (arXiv 2405.04434) limits a token to the best groups of experts, a group's score being its best expert's;
DeepSeek-V3 (arXiv 2412.19437) chooses by sigmoid scores with a bias added, a group's score being the
sum of its best two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from comparator.diagnosis.tap_rows import Float, Selection, Single

PLAIN = Selection()


class Selected(Struct, frozen=True, eq=False):
    """Scores of one side and the choice that they make. The margins have shape ``(rows,)``."""

    scores: Float
    """Rows × experts; minus infinity in groups that were not chosen."""
    experts: npt.NDArray[np.int64]
    """The ``top_k`` chosen ones, best first. Shape ``(rows, top_k)``."""
    margin: Float
    """From the last chosen expert to the next, or from the last chosen group to the next: the smaller one."""


def scores_of(logits: Single, selection: Selection, bias: Single | None) -> Float:
    """What the choice goes by: logits, or what orders experts otherwise than these. Shape as ``logits``."""
    wide = logits.astype(np.float64)
    if bias is None:
        if selection.scoring == "sigmoid" and selection.groups > 1:
            return _sigmoid(wide)
        return wide
    if selection.scoring == "sigmoid":
        return _sigmoid(wide) + bias
    weights = np.exp(wide - wide.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True) + bias, np.float64)


def rounding_of_scores(logits: Single, scores: Float, unit: float, selection: Selection, bias: Single | None) -> Float:
    """Margin within which rounding decides between a score and the next, in the units of ``scores_of``. Shape as
    ``logits``.

    One rounding of the logit, or of the score where an engine computes scores in the dtype of the logits: two
    probabilities whose ratio is below 1 + 2 ``unit`` may then be the same number, and which of them is chosen is open.
    """
    rounding = unit * np.abs(logits.astype(np.float64))
    if bias is None and not (selection.scoring == "sigmoid" and selection.groups > 1):
        return np.asarray(np.maximum(rounding, 2 * unit), np.float64)
    probability = np.abs(scores if bias is None else scores - bias)
    return np.asarray(np.maximum(rounding * np.abs(1 - probability), 2 * unit) * probability, np.float64)


def select(scores: Float, top_k: int, selection: Selection) -> Selected:
    """The choice that ``scores`` make. ``top_k`` must be below the number of experts that may be chosen."""
    rows, experts = scores.shape
    margin = np.full(rows, np.inf)
    if selection.groups > 1 and experts % selection.groups == 0 and selection.best_groups < selection.groups:
        grouped = scores.reshape(rows, selection.groups, -1)
        members = min(2 if selection.biased else 1, grouped.shape[2])
        values = np.sort(grouped, axis=2)[:, :, -members:].sum(2)
        order = np.argsort(-values, axis=1, kind="stable")
        ordered = np.take_along_axis(values, order, axis=1)
        # A sum of two scores has the root of two times the error of one.
        margin = (ordered[:, selection.best_groups - 1] - ordered[:, selection.best_groups]) / np.sqrt(members)
        kept = np.zeros(values.shape, np.bool_)
        np.put_along_axis(kept, order[:, : selection.best_groups], True, axis=1)
        scores = np.where(kept[:, :, None], grouped, -np.inf).reshape(rows, experts)
    best = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, best[:, : top_k + 1], axis=1)
    with np.errstate(invalid="ignore"):
        gap = ordered[:, top_k - 1] - ordered[:, top_k]
    gap = np.where(np.isnan(gap), 0.0, gap)
    return Selected(scores, best[:, :top_k], np.minimum(margin, gap))


def _sigmoid(logits: Float) -> Float:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float64)

"""What the headers of both runs say of the model: experts per token, how these are chosen, the width of a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from msgspec import Struct

from comparator.diagnosis import Selection
from comparator.diagnosis.floors import QUANTISED, UNIT_ROUNDOFF, Quantisation, Sides
from comparator.diagnosis.tap_graph import ModelStructure
from comparator.options import CoarseDtype, Options
from dumper.reading.protocol import Run

T = TypeVar("T")
_SHORT = {"half": "float16", "float": "float32"}
BIAS = "moe_correction_bias"
"""Name of the tap that holds the bias which is added to the scores for the choice of experts."""
_BIASED = ("noaux_tc",)
"""Ways to choose (``topk_method``) that add a bias, as DeepSeek-V3's."""


class ModelFacts(Struct, frozen=True):
    """None where it was not recorded, or where the runs say different things."""

    top_k: int | None = None
    head_size: int | None = None
    """Channels per head of what the attention gives."""
    selection: Selection | None = None
    """Without its biases; None where the largest logits are chosen."""
    structure: ModelStructure = ModelStructure()


def model_facts(baseline: Run, target: Run, options: Options | None = None) -> ModelFacts:
    """What both headers say, or one of them where the other says nothing; ``options`` may say more of quantisation."""
    options = options or Options()
    sides = [_settings(baseline), _settings(target)]

    def common(name: str, read: Callable[[str], T]) -> T | None:
        texts = {side[name] for side in sides if name in side}
        if len(texts) != 1:
            return None
        try:
            return read(texts.pop())
        except ValueError:
            return None

    head = common("model.v_head_dim", _count) or common("model.head_dim", _count)
    if head is None:
        hidden, heads = common("model.hidden_size", _count), common("model.num_attention_heads", _count)
        head = hidden // heads if hidden and heads and hidden % heads == 0 else None
    scoring: Literal["softmax", "sigmoid"] = "sigmoid" if common("model.scoring_func", str) == "sigmoid" else "softmax"
    selection = Selection(
        scoring,
        common("model.n_group", _count) or 1,
        common("model.topk_group", _count) or 1,
        biased=common("model.topk_method", str) in _BIASED,
    )
    plain = selection.groups == 1 and not selection.biased and scoring == "softmax"
    quantisation = Quantisation(
        _coarse(options.activation_dtype, sides, "model.activations"),
        _coarse(options.kv_cache_dtype, sides, "model.kv_cache"),
    )
    top_k = common("model.num_experts_per_tok", _count)
    dtypes = _dtype(sides[0]), _dtype(sides[1])
    structure = ModelStructure(common("model.num_hidden_layers", _count), top_k is not None, dtypes, quantisation)
    return ModelFacts(top_k, head, None if plain else selection, structure)


def _dtype(side: Mapping[str, str]) -> str | None:
    """What a model computes in: what its server was asked for, else what its config says."""
    asked = side.get("--dtype", "auto")
    told = side.get("model.dtype", side.get("model.torch_dtype", ""))
    name = _SHORT.get(asked, asked) if asked not in ("auto", "") else told.removeprefix("torch.")
    return name if name in UNIT_ROUNDOFF else None


def _coarse(given: CoarseDtype | None, sides: Sequence[Mapping[str, str]], name: str) -> Sides:
    """What each side rounds values to; a header's word that is not known is taken for nothing."""
    baseline, target = (given or side.get(name) for side in sides)
    return baseline if baseline in QUANTISED else None, target if target in QUANTISED else None


def _settings(run: Run) -> dict[str, str]:
    return dict(run.headers[min(run.headers)].settings) if run.headers else {}


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value

"""Reports of comparisons that never were, as the JSON objects of their lines: as large, or as odd, as a test wants."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

TAPS = ("layer_input", "attn_pre_o_proj", "attn_output", "pre_mlp_residual", "moe_router_logits", "mlp_output")
FAULTY = "attn_output"

Json = dict[str, Any]


def report(
    layers: int, steps: int, *, fault: int | None, taps: tuple[str, ...] = TAPS, seed: int = 0
) -> Iterator[Json]:
    """The lines of a comparison of two runs, ``layers x len(taps) x steps`` findings.

    In layer ``fault`` error comes in at ``FAULTY`` (or the middle tap) and is inherited from there on.
    """
    chance = random.Random(seed)
    first = taps.index(FAULTY) if FAULTY in taps else len(taps) // 2
    total = layers * len(taps) * steps
    failed = 0 if fault is None else steps * ((layers - fault) * len(taps) - first)
    yield {"type": "config", "config": {"baseline": "runs/one", "target": "runs/two"}, "errors": [], "infos": []}
    for side in ("baseline", "target"):
        rows = [{"rank": rank, "tp": f"{rank}/2", "pp": "0/1"} for rank in range(2)]
        yield {"type": "rank_info", "label": side, "rows": rows, "errors": [], "infos": []}
    for step in range(steps):
        for layer in range(layers):
            for at, name in enumerate(taps):
                bad = fault is not None and (layer, at) >= (fault, first)
                source = None if not bad or (layer, at) == (fault, first) else f"{taps[first]} layer {fault}"
                yield finding(name, layer, step, chance, bad=bad, source=source)
    yield {
        "type": "diagnosis", "errors": [], "infos": [], "verdict": "differ" if failed else "agree", "also": [],
        "words": f"The runs differ: error is introduced at {taps[first]} layer {fault}." if failed else "They agree.",
        "place": {"name": taps[first], "layer": fault, "tags": {}, "tap": f"model.Layer.forward#2:{taps[first]}"}
        if failed else None,
        "flips": [], "undecided": [], "notes": [],
    }  # fmt: skip
    account = {"recorded": 4 * layers * steps, "compared": 4 * layers * steps, "left_out": {}}
    yield {
        "type": "accounts", "errors": [], "infos": [],
        "names": [{"name": name, "baseline": account, "target": account} for name in taps],
    }  # fmt: skip
    yield {
        "type": "summary", "errors": [], "infos": [], "total": total, "passed": total - failed, "failed": failed,
        "skipped": 0, "errored": 0, "exit_code": int(bool(failed)), "only_baseline": [], "only_target": [],
    }  # fmt: skip


def finding(
    name: str, layer: int, step: int, chance: random.Random, *, bad: bool = False, source: str | None = None
) -> Json:
    """One pair of tensors with numbers as they may be, no two alike."""
    floor = 0.0036
    number = chance.random
    error = floor * (3 + 87 * number() if bad else 0.2 + 0.7 * number())
    judged = "within-rounding" if not bad else "introduced-here" if source is None else "inherited-from"
    side = {"dtype": "torch.bfloat16", "shape": [4, 4096]}
    return {
        "type": "comparison_tensor", "name": name, "tags": {"layer_id": str(layer)}, "location": {"step": step},
        "category": "failed" if bad else "passed", "tap": f"model.Layer.forward#2:{name}", "errors": [], "infos": [],
        "baseline": {**side, "stats": _statistics(chance)}, "target": {**side, "stats": _statistics(chance)},
        "unified_shape": [4, 4096], "shape_mismatch": False, "level": "full", "replicated_checks": [],
        "diff": {
            "rel_diff": error**2 / 2, "max_abs_diff": 0.1 * number(), "mean_abs_diff": 0.01 * number(),
            "abs_diff_percentiles": {}, "max_diff_coord": [int(4 * number()), int(4096 * number())],
            "baseline_at_max": 6 * number() - 3, "target_at_max": 6 * number() - 3, "relative_l2": error,
            "scale": 0.98 + 0.04 * number(), "differing": int(16384 * number()), "passed": not bad,
            "predicate": "introduced error within rounding", "max_diff_token": "sequence 0, position 2",
            "max_token_rel": error**2,
        },
        "raw_bundle_info": {"x": _bundle(step), "y": _bundle(step)},
        "tokens": {"matched": 4, "only_baseline": {}, "only_target": {}, "padding_baseline": 0, "padding_target": 0},
        "first_bad_token": "sequence 0, position 1" if bad else None,
        "analysis": {
            "judged": judged, "source": source, "error": error, "inherited": 0.0 if source is None else error,
            "introduced": error if source is None else 0.0, "floor": floor, "rows": 4, "rows_left_out": 0,
            "multiple": error / floor,
            "test": {"name": "bits", "strength": 8.3, "value": 10.0, "threshold": 1.2, "where": ""},
        },
    }  # fmt: skip


def _statistics(chance: random.Random) -> Json:
    number = chance.random
    return {
        "mean": 0.2 * number() - 0.1, "abs_mean": 0.5 + 0.5 * number(), "std": 1 + number(),
        "min": -5 - 4 * number(), "max": 5 + 4 * number(), "nan_count": 0, "inf_count": 0,
    }  # fmt: skip


def _bundle(step: int) -> Json:
    files = [
        {"shape": [4, 2048], "dtype": "torch.bfloat16", "rank": rank, "parallel_info": {"tp": f"{rank}/2"},
         "step": step, "filename": None, "kept": True, "reason": None}
        for rank in range(2)
    ]  # fmt: skip
    return {"num_files": 2, "dims": "t h[tp]", "files": files}

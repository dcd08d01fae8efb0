"""Models that no config ships for, recorded as a user would: with what ``patcher suggest`` writes, computed in two ways
that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.engines.huggingface.models import ModelShape, build_model
from benchmarks.faults.in_process import recorded
from benchmarks.faults.judging import judge
from patcher.source.modules import ModuleFinder
from patcher.suggest import suggest_config

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

TOKENS = 160


def record(model: Any, kind: str, folder: Path, name: str, ids: Any, chunk: int = TOKENS, **arguments: Any) -> Path:
    """The run of a prefill in chunks, with the taps that are suggested for the module of the model."""
    config = folder / f"{kind}.yaml"
    if not config.exists():
        config.write_text(suggest_config(f"transformers.models.{kind}.modeling_{kind}", ModuleFinder()))
    run = folder / name
    with recorded(run, [config]), torch.inference_mode():
        cache = None
        for start in range(0, ids.shape[1], chunk):
            output = model(input_ids=ids[:, start : start + chunk], past_key_values=cache, use_cache=True, **arguments)
            cache = output.past_key_values
    return run


@pytest.mark.slow
def test_experts_that_a_bias_helps_to_choose(tmp_path: Path) -> None:
    """Where logits are nearly equal, two kernels of the attention make other choices, and nobody is to blame."""
    shape = ModelShape("deepseek_v3", torch.bfloat16, seed=14)
    ids = torch.randint(1, 300, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    runs = [
        record(build_model(shape, attention), "deepseek_v3", tmp_path, attention, ids)
        for attention in ("sdpa", "eager")
    ]
    outcome = judge(*runs)
    assert outcome.verdict == "agree", outcome
    assert outcome.differs

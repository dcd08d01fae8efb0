"""Models that no config ships for, recorded as a user would: with what ``patcher suggest`` writes, computed in two ways
that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import comparator
from benchmarks.faults.engines.huggingface.models import ModelShape, build_model
from benchmarks.faults.in_process import recorded
from benchmarks.faults.judging import judge
from dumper import open_run
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


def generate_with_t5(folder: Path, *, together: bool, fault: float = 1.0) -> Path:
    """The run of a generation from three prompts; ``fault`` scales what the MLP of the encoder's last layer gives."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=300, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, eos_token_id=None
    )
    config.decoder_start_token_id = 0
    model = transformers.T5ForConditionalGeneration(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
        model.encoder.block[1].layer[-1].DenseReluDense.wo.weight.mul_(fault)
    prompts = [torch.randint(5, 300, (length,)) for length in (7, 19, 12)]
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    batches = [(ids, (ids != 0).long())] if together else [(one[None], torch.ones(1, len(one))) for one in prompts]
    text = folder / "t5.yaml"
    text.write_text(suggest_config("transformers.models.t5.modeling_t5", ModuleFinder()))
    run = folder / f"{together}-{fault}"
    with recorded(run, [text]), torch.inference_mode():
        for input_ids, mask in batches:
            model.generate(input_ids=input_ids, attention_mask=mask.long(), max_new_tokens=4, do_sample=False)
    return run


@pytest.mark.slow
def test_an_encoder_and_a_decoder_have_tokens_of_their_own(tmp_path: Path) -> None:
    one_by_one = generate_with_t5(tmp_path, together=False)
    report = comparator.compare(one_by_one, generate_with_t5(tmp_path, together=True), token_aligner="smart")
    assert report.passed, report.describe()
    stacks = {record.tags.get("stack") for record in open_run(one_by_one).records}
    assert stacks >= {"encoder", "decoder"}
    faulty = comparator.compare(
        one_by_one, generate_with_t5(tmp_path, together=False, fault=1.05), token_aligner="smart"
    )
    assert "t5_dense_act_dense_wo layer 1 stack=encoder" in faulty.describe()

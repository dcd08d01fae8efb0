"""Transformers models under the shipped configs: the model's results stay, and so do records and layouts, compiled or
not, with every kind of cache."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import patcher
from dumper import Run, dumper, open_run
from testbed.paths import CONFIGS
from tests.gpu.recordings import CUDA, DEVICE, Recordings, keep_busy, synchronize

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
MODELS = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", SHAPE),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", SHAPE | EXPERTS),
}
IDS = torch.randint(1, 320, (2, 17), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :5] = 0
NEW_TOKENS = 5


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A small model with random weights on the device, float32 with scaled_dot_product_attention."""
    config_name, model_name, shape = MODELS[request.param]
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    with patcher.patched(CONFIGS / "transformers" / f"{request.param}.yaml"):
        folder = tmp_path_factory.mktemp(request.param)
        dumper.configure(enable=False, dir=str(folder), control=False)
        config = getattr(transformers, config_name)(**shape)
        yield getattr(transformers, model_name)(config).eval().to(DEVICE)
        dumper.close()
        dumper.configure(enable=False)


_numbers = itertools.count().__next__


def recorded(call: Callable[[], Any]) -> tuple[Run, Any]:
    """The run that ``call`` records, and what it returns."""
    dumper.configure(enable=True, run=f"run-{_numbers()}")
    try:
        result = call()
        path = dumper.settings.run_path
    finally:
        dumper.close()
        dumper.configure(enable=False)
    run = open_run(path)
    assert not run.problems
    assert not run.losses
    return run, result


@torch.inference_mode()
def forward(model: Any) -> torch.Tensor:
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=IDS.to(device), attention_mask=MASK.to(device)).logits
    return logits


def generate(model: Any, **options: Any) -> list[list[int]]:
    torch._dynamo.reset()
    with torch.no_grad():
        tokens = model.generate(
            input_ids=IDS.to(DEVICE),
            attention_mask=MASK.to(DEVICE),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            **options,
        )
    found: list[list[int]] = tokens.tolist()
    return found


def described(run: Run) -> list[Any]:
    """Per step its mode, and of each sequence where it begins and how many tokens it has; and all token ids."""
    found = []
    for step in run.steps:
        layout = run.layout(step, 0)
        assert layout is not None, f"step {step} has no layout"
        assert layout.token_ids is not None
        spans = [(span.id.partition("-")[2], span.start, span.count) for span in layout.sequences]
        found.append((layout.forward_mode, spans, [int(token) for token in layout.token_ids]))
    return found


def assert_near(left: Run, right: Run, tolerance: float) -> None:
    """Runs of the same passes hold the same records, with values that are near each other on rows that are tokens."""
    assert len(left.records) == len(right.records) > 0
    steps = dict(zip(right.steps, left.steps, strict=True))
    for there in right.records:
        (here,) = left.select(name=there.name, step=steps[there.step], **there.tags)
        assert here.shape == there.shape
        layout = right.layout(there.step, 0)
        assert layout is not None
        a, b = here.tensor().float(), there.tensor().float()
        if a.dim() == 3 and layout.batch_shape == tuple(a.shape[:2]):
            real = torch.tensor(layout.row_sequence).reshape(layout.batch_shape) >= 0
            a, b = a[real], b[real]
        elif a.dim() == 2 and a.shape[0] == layout.rows:
            real = torch.tensor(layout.row_sequence) >= 0
            a, b = a[real], b[real]
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=f"{there.name} {dict(there.tags)}")


def variant(model: Any, attention: str, dtype: torch.dtype, device: str) -> Any:
    changed = copy.deepcopy(model)
    changed.set_attn_implementation(attention)
    return changed.to(device=device, dtype=dtype)


def test_forward_passes(model: Any) -> None:
    runs = {}
    for attention, dtype, device in (
        ("eager", torch.float32, "cpu"),
        ("eager", torch.float32, DEVICE),
        ("sdpa", torch.float32, DEVICE),
        ("sdpa", torch.bfloat16, DEVICE),
    ):
        changed = variant(model, attention, dtype, device)
        plain = forward(changed)
        run, logits = recorded(lambda changed=changed: forward(changed))  # type: ignore[misc]
        assert torch.equal(plain, logits)
        runs[attention, dtype, device] = run
    first, *others = runs.values()
    for other in others:
        assert described(other) == described(first)
    assert_near(runs["eager", torch.float32, "cpu"], runs["eager", torch.float32, DEVICE], 1e-3)
    assert_near(runs["eager", torch.float32, DEVICE], runs["sdpa", torch.float32, DEVICE], 1e-3)


def test_generation_with_every_cache(model: Any) -> None:
    plain = generate(model)
    dynamic, tokens = recorded(lambda: generate(model))
    assert tokens == plain
    static, tokens = recorded(lambda: generate(model, cache_implementation="static", disable_compile=True))
    assert tokens == plain
    assert described(static) == described(dynamic)
    assert_near(dynamic, static, 1e-3)
    if model.config.model_type == "qwen3_moe":
        return  # its choice of experts breaks graphs without us
    counters.clear()
    options: dict[str, Any] = {"cache_implementation": "static"}
    if not CUDA:
        config = transformers.CompileConfig(backend="eager")
        config._compile_all_devices = True
        options["compile_config"] = config
    compiled, tokens = recorded(lambda: generate(model, **options))
    assert tokens == plain
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] >= 1
    assert described(compiled) == described(dynamic)
    assert_near(dynamic, compiled, 1e-3)


@pytest.mark.parametrize("kind", ["no cache", "dynamic", "static", "static, a mask per query"])
def test_no_step_waits_for_the_device(recordings: Recordings, kind: str) -> None:
    """The length of a static cache is known on the device alone."""
    past, length, width = (0 if kind == "no cache" else 4), 32, 64
    config = transformers.Qwen3Config(**SHAPE)

    def cache(tokens: int) -> Any:
        if kind == "no cache":
            return None
        made = transformers.DynamicCache(config=config)
        if kind.startswith("static"):
            made = transformers.StaticCache(config=config, max_cache_len=width)
        state = torch.randn(2, 2, tokens, 32, device=DEVICE)
        for layer in range(2):
            made.update(state, state, layer)
        return made

    mask: Any = torch.ones(2, past + length, dtype=torch.long, device=DEVICE)
    if kind.endswith("per query"):
        column, own = torch.arange(width, device=DEVICE), past + torch.arange(length, device=DEVICE)
        mask = {"full_attention": (column <= own[:, None]).expand(2, 1, -1, -1)}
    ids = torch.arange(2 * length, device=DEVICE).reshape(2, length)
    batch = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache(past)}
    after_the_pass = {**batch, "past_key_values": cache(past + length)}
    value = torch.randn(2, length, 8, device=DEVICE)
    recorder = recordings.start()

    def step() -> None:
        recorder.step(batch)
        recorder.dump("x", value)
        recorder.dump("last", recorder.last_tokens(value, after_the_pass))

    for _ in range(3):
        step()
    recorder.flush()
    synchronize()
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        recorder.flush()
        synchronize()
        keep_busy(500)
        step()
        assert not torch.cuda.current_stream().query()
    run = recordings.read(recorder)
    for number in run.steps:
        layout = run.layout(number, 0)
        assert layout is not None
        assert layout.token_ids is not None
        assert list(layout.token_ids) == list(range(2 * length))
        assert [(span.start, span.count) for span in layout.sequences] == [(past, length)] * 2
        (last,) = run.select(name="last", step=number)
        torch.testing.assert_close(last.tensor(), value[:, -1].cpu())


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_forward_passes(model: Any, mode: str) -> None:
    if model.config.model_type == "qwen3_moe":
        pytest.skip("its choice of experts breaks graphs without us")
    eager, expected = recorded(lambda: forward(model))
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, mode=mode, fullgraph=True)
    with torch.no_grad():

        def call() -> torch.Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            out = compiled(input_ids=IDS.to(DEVICE), attention_mask=MASK.to(DEVICE), use_cache=False)
            logits: torch.Tensor = out.logits.clone()
            return logits

        for _ in range(2):
            call()
        assert counters["stats"]["unique_graphs"] == 1
        run, logits = recorded(lambda: [call() for _ in range(3)][-1])
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2
    assert counters["inductor"]["cudagraph_skips"] == 0
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert described(run) == described(eager) * 3
    last = run.steps[-1]
    for there in eager.records:
        (here,) = run.select(name=there.name, step=last, **there.tags)
        assert here.shape == there.shape

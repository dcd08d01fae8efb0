"""Models compiled under the shipped Transformers config: one graph, and the layouts of eager code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import patcher
from dumper import dumper, open_run
from testbed.paths import CONFIGS

transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = pytest.mark.slow

SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "eos_token_id": None,
    "pad_token_id": 0,
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 10, 11, 12]])
MASK = (IDS != 0).long()
NEW_TOKENS = 4


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Any]:
    torch.manual_seed(0)
    with patcher.patched(CONFIGS / "transformers" / "qwen3.yaml"):
        dumper.configure(enable=False, dir=str(tmp_path), control=False)
        yield transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE)).eval()
        dumper.close()
        dumper.configure(enable=False)


def recorded(name: str, call: Callable[[], Any]) -> Any:
    """The run that ``call`` records, and what it returns."""
    dumper.configure(enable=True, run=name)
    result = call()
    path = dumper.settings.run_path
    dumper.close()
    dumper.configure(enable=False)
    run = open_run(path)
    assert not run.problems
    return run, result


class Counting:
    """A backend that runs graphs as they come, and counts them."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __deepcopy__(self, memo: object) -> Counting:
        return self

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs.append(graph)
        return graph.forward


def layouts(run: Any) -> list[tuple[Any, ...]]:
    """Per step its mode, and of each sequence its name, where it begins and how many tokens it has."""
    found = []
    for step in run.steps:
        layout = run.layout(step, 0)
        # Calls are counted in the whole process.
        spans = [(span.id.partition("-")[2], span.start, span.count) for span in layout.sequences]
        found.append((layout.forward_mode, spans, layout.token_ids.tolist()))
    return found


def generate(model: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    with torch.no_grad():
        return model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=NEW_TOKENS, do_sample=False, **options)


def test_a_compiled_forward_pass_is_one_graph(model: Any) -> None:
    plain, counting = Counting(), Counting()
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits

        def call(compiled: Any) -> Any:
            return compiled(input_ids=IDS, attention_mask=MASK, use_cache=False).logits

        torch._dynamo.reset()
        compiled = torch.compile(model, backend=counting, fullgraph=True)
        for _ in range(3):
            call(compiled)
        assert len(counting.graphs) == 1  # counting steps compiles nothing anew
        run, logits = recorded("compiled", lambda: [call(compiled) for _ in range(3)][-1])
        assert len(counting.graphs) == 2
        torch.testing.assert_close(logits, expected)
        eager, _ = recorded("eager", lambda: model(input_ids=IDS, attention_mask=MASK, use_cache=False))
        patched_off = counting.graphs[0]
        # With taps off the graph is the model's, but for the steps that are counted.
        torch._dynamo.reset()
        dumper._settings, settings = None, dumper._settings
        call(torch.compile(model, backend=plain, fullgraph=True))
        dumper._settings = settings
    ours = [node for node in patched_off.graph.nodes if "tensortap" in str(node.target)]
    assert [str(node.target) for node in ours] == ["tensortap.step", "tensortap.end_step"]
    assert len(patched_off.graph.nodes) - len(ours) == len(plain.graphs[0].graph.nodes)
    (expected_layout,) = layouts(eager)
    assert layouts(run) == [expected_layout] * 3
    one_step = run.select(step=run.steps[1])
    assert [(record.name, dict(record.tags), record.shape) for record in one_step] == [
        (record.name, dict(record.tags), record.shape) for record in eager.records
    ]
    for left, right in zip(one_step, eager.records, strict=True):
        torch.testing.assert_close(left.tensor(), right.tensor())


def test_generation_with_compiled_decoding_has_the_layouts_of_eager_code(model: Any) -> None:
    """The prefill runs as it is, each decode pass as a graph that carries the length of the static cache."""
    from transformers.generation.configuration_utils import CompileConfig

    run, expected = recorded("dynamic", lambda: generate(model))
    counting = Counting()
    config = CompileConfig(fullgraph=True, dynamic=False, backend=counting, mode=None)
    config._compile_all_devices = True
    compiled, tokens = recorded(
        "compiled", lambda: generate(model, cache_implementation="static", compile_config=config)
    )
    assert tokens.tolist() == expected.tolist()
    assert len(counting.graphs) == 1
    assert layouts(compiled) == layouts(run)
    names = {span.id for step in compiled.steps for span in compiled.layout(step, 0).sequences}
    assert len(names) == 2
    assert len(compiled.records) == len(run.records)


def test_no_step_asks_a_device_for_a_value(model: Any) -> None:
    """``step`` and ``last_tokens`` with a static cache, whose length is a tensor."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from dumper.adapters.transformers import TransformersAdapter
    from dumper.adapters.transformers_last import indices_of_last

    asked: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "item"):
                asked.append(str(function))
            return function(*args, **(kwargs or {}))

    passes: list[dict[str, Any]] = []
    forward = model.forward

    def watched(*arguments: Any, **keywords: Any) -> Any:
        adapter = TransformersAdapter()
        with Watching():
            from dumper.adapters.transformers_batch import attention_mask, past_length
            from dumper.adapters.transformers_rows import causal_rows

            past = past_length(keywords)
            assert not passes or isinstance(past, torch.Tensor)
            causal_rows(attention_mask(keywords), past, tuple(keywords["input_ids"].shape))
        exact = forward(*arguments, **keywords)
        shape = tuple(keywords["input_ids"].shape)
        with Watching():
            sequence, index = indices_of_last(keywords, shape, torch.device("cpu"))
        columns = exact.logits
        kept = shape[1] - columns.shape[1]
        assert torch.equal(columns[sequence, index - kept], adapter.last_tokens(columns, keywords))
        passes.append(keywords)
        return exact

    model.forward = watched
    generate(model, cache_implementation="static", disable_compile=True)
    assert len(passes) == NEW_TOKENS
    assert asked == []

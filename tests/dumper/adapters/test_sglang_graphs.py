"""What is read off SGLang's graph runners while they capture; the shapes of their functions are those of releases."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dumper.adapters.protocol import GraphFacts
from dumper.adapters.sglang_graphs import facts_of_callers


def capture_graph() -> GraphFacts | None:
    return facts_of_callers(sys._getframe())


class CudaGraphRunner:
    """0.5.9 to 0.5.16."""

    num_tokens_per_bs = 1

    def capture_one_batch_size(self, bs: int, forward: Any, stream_idx: int | None = None) -> Any:
        num_tokens = bs * self.num_tokens_per_bs
        return forward(num_tokens)


class PiecewiseCudaGraphRunner:
    """0.5.9 to 0.5.16."""

    def capture_one_batch_size(self, num_tokens: int) -> Any:
        bs = 1
        return capture_graph() if bs else num_tokens


class DecodeCudaGraphRunner:
    """From 0.5.17 on."""

    captured_req_width = 4

    def capture(self) -> Any:
        return self.capture_one_shape(8, capture_graph)

    def capture_one_shape(self, size: int, forward: Any) -> Any:
        num_tokens = size * self.captured_req_width

        def run_once() -> Any:
            return forward() if num_tokens else self

        return run_once()


class EAGLEDraftCudaGraphRunner(DecodeCudaGraphRunner):
    def capture_one_shape(self, size: int, forward: Any) -> Any:
        return forward()


class PrefillCudaGraphRunner:
    """From 0.5.17 on."""

    def capture_one_shape(self, size: int, *, prefix_num_chunks: int = 0) -> Any:
        return capture_graph()


class DraftModelRunner:
    is_draft_worker = True


def of_draft_worker() -> CudaGraphRunner:
    runner = CudaGraphRunner()
    runner.model_runner = DraftModelRunner()  # type: ignore[attr-defined]
    return runner


@pytest.mark.parametrize(
    ("captured", "facts"),
    [
        (
            lambda: CudaGraphRunner().capture_one_batch_size(8, lambda tokens: capture_graph()),
            GraphFacts("CudaGraphRunner", "target", 8, 8),
        ),
        (
            lambda: of_draft_worker().capture_one_batch_size(2, lambda tokens: capture_graph()),
            GraphFacts("CudaGraphRunner", "draft", 2, 2),
        ),
        (
            lambda: PiecewiseCudaGraphRunner().capture_one_batch_size(512),
            GraphFacts("PiecewiseCudaGraphRunner", "target", 512, None),
        ),
        (DecodeCudaGraphRunner().capture, GraphFacts("DecodeCudaGraphRunner", "target", 32, 8)),
        (EAGLEDraftCudaGraphRunner().capture, GraphFacts("EAGLEDraftCudaGraphRunner", "draft", 32, 8)),
        (
            lambda: PrefillCudaGraphRunner().capture_one_shape(256),
            GraphFacts("PrefillCudaGraphRunner", "target", 256, None),
        ),
        (capture_graph, None),
    ],
)
def test_facts_of_callers(captured: Any, facts: GraphFacts | None) -> None:
    assert captured() == facts

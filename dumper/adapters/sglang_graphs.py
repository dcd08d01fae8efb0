"""Which of SGLang's graph runners captures a CUDA graph, and for how many tokens and requests.

The runners differ between releases, and their functions have these numbers as arguments and local variables. They are
read off the callers while a graph is captured, which happens once for each graph.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from dumper.adapters.protocol import GraphFacts

_RUNNER = "GraphRunner"
"""End of the names of the classes: DecodeCudaGraphRunner, EAGLEDraftCudaGraphRunner, CudaGraphRunner, …"""
_MOST_FRAMES = 100


def facts_of_callers(frame: FrameType | None) -> GraphFacts | None:
    """What the innermost graph runner among the callers is capturing; None where there is none."""
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        names = frame.f_locals
        runner = names.get("self")
        if type(runner).__name__.endswith(_RUNNER) and frame.f_code.co_name.startswith("capture"):
            facts = _facts(runner, names)
            if facts.tokens is not None or facts.requests is not None:
                return facts
        frame = frame.f_back
    return None


def _facts(runner: Any, names: dict[str, Any]) -> GraphFacts:
    tokens, requests = _number(names.get("num_tokens")), _number(names.get("bs"))
    size = _number(names.get("size"))
    name = type(runner).__name__
    if tokens is None and requests is None and size is not None:
        # The one argument of releases from 0.5.20 on counts requests when decoding and tokens otherwise.
        tokens, requests = (size, None) if "Prefill" in name else (None, size)
    if tokens is None and requests is not None:
        width = _number(getattr(runner, "captured_req_width", None)) or _number(
            getattr(runner, "num_tokens_per_bs", None)
        )
        tokens = requests * (width or 1)
    model = getattr(runner, "model_runner", None)
    draft = "Draft" in name or bool(getattr(model, "is_draft_worker", False))
    return GraphFacts(runner=name, role="draft" if draft else "target", tokens=tokens, requests=requests)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

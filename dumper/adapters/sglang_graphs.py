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
_MOST_FRAMES = 200


def facts_of_callers(frame: FrameType | None) -> GraphFacts | None:
    """What the innermost graph runner among the callers is capturing; None where there is none."""
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        # Asked of these frames alone: the answer keeps all local variables alive, tensors too, until the function ends.
        if frame.f_code.co_name.startswith("capture"):
            names = frame.f_locals
            runner = names.get("self")
            if type(runner).__name__.endswith(_RUNNER):
                facts = _facts(runner, names)
                if facts.tokens is not None or facts.requests is not None:
                    return facts
        frame = frame.f_back
    return None


def _facts(runner: Any, names: dict[str, Any]) -> GraphFacts:
    name = type(runner).__name__
    size = _number(names.get("size"))
    if name.startswith(_OF_TOKENS):
        tokens, requests = _number(names.get("num_tokens")) or size, None
    else:
        requests = _number(names.get("bs")) or _number(names.get("num_seqs")) or size
        tokens = _number(names.get("num_tokens"))
    if tokens is None and requests is not None:
        width = next((_number(getattr(runner, field, None)) for field in _WIDTHS if hasattr(runner, field)), None)
        tokens = requests * (width or 1)
    model = getattr(runner, "model_runner", None)
    draft = any(word in name for word in _DRAFTS) or bool(getattr(model, "is_draft_worker", False))
    return GraphFacts(runner=name, role="draft" if draft else "target", tokens=tokens, requests=requests)


_OF_TOKENS = ("Prefill", "Piecewise", "Breakable")
"""Runners of passes that are padded to a number of tokens, whatever the number of requests."""
_WIDTHS = ("captured_req_width", "num_tokens_per_bs")
"""How many tokens a request has in each pass; up to 0.5.16 under the second name."""
_DRAFTS = ("Draft", "MTP")


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

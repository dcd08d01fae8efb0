"""Which rows of a captured value a pass has filled.

A graph is captured for a number of tokens or requests, and a smaller pass is padded up to it; the last rows then hold
what an earlier replay or the padding left. Pure: looks at shapes and dims alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dumper.adapters.protocol import GraphFacts, PassSize
from tensortap.dims import BATCH, REQUEST, TOKEN, DimsError, parse_dims


def rows_of_pass(shape: Sequence[int], dims: str | None, facts: GraphFacts | None, size: PassSize | None) -> int | None:
    """How many of the first rows (of the first dimension) a pass of ``size`` has filled; None for all of them.

    Only where dims say that the first dimension counts tokens (``t``) or requests (``request``, ``b``) and is whole on
    this rank. A dimension of tokens with as many rows as the graph has requests holds the last token of each. Where the
    engine's graph is known (``facts``), rows that fit neither of its sizes are left alone, such as those that
    data-parallel ranks have gathered.
    """
    counts = _counted(dims)
    if size is None or counts is None or not shape:
        return None
    rows = shape[0]
    tokens, requests = (None, None) if facts is None else (facts.tokens, facts.requests)
    if tokens is None and requests is None:
        kept = None if size.shared else size.tokens if counts == "tokens" else size.requests
    elif counts == "tokens" and rows == tokens:
        kept = size.tokens
    else:
        kept = size.requests if rows == requests else None
    return kept if kept is not None and kept < rows else None


def _counted(dims: str | None) -> Literal["tokens", "requests"] | None:
    """What the first dimension counts."""
    if dims is None:
        return None
    try:
        parsed = parse_dims(dims)
    except DimsError:
        return None
    first = parsed.dimensions[0]
    if parsed.row_order is not None or not all(modifier.partial for modifier in first.modifiers):
        return None
    if first.names == (BATCH,) or dims.split(None, 1)[0].partition("[")[0] == REQUEST:
        return "requests"
    return "tokens" if first.names == (TOKEN,) else None

"""Which rows of a captured value belong to the pass."""

from __future__ import annotations

import numpy as np
import pytest

from dumper.adapters.protocol import GraphFacts, PassSize, PendingLayout
from dumper.layout import DataParallelRows, SequenceSpan, TokenLayout
from dumper.recording.graphs.replays import rows_of_pass

PASS = PassSize(tokens=5, requests=3)
SHARED = PassSize(tokens=5, requests=3, shared=True)
VERIFY = GraphFacts(tokens=16, requests=8)


@pytest.mark.parametrize(
    ("rows", "dims", "facts", "size", "kept"),
    [
        # Nobody knows the graph: dims alone say what is padded.
        (8, "t h", None, PASS, 5),
        (8, "t h[tp:partial] # ep:replicated", None, PASS, 5),
        (8, "t[tp:partial] h", None, PASS, 5),
        (8, "request v", None, PASS, 3),
        (8, "b s h", None, PASS, 3),
        (5, "t h", None, PASS, None),
        (4, "t h", None, PASS, None),
        (8, "h t", None, PASS, None),
        (8, "t[tp] h", None, PASS, None),
        (8, "t h # permuted:=order/2", None, PASS, None),
        (8, "(t*k) h", None, PASS, None),
        (8, "not dims (", None, PASS, None),
        (8, None, None, PASS, None),
        (8, "t h", None, None, None),
        # Rows that several ranks have gathered cannot be told from own ones.
        (8, "t h", None, SHARED, None),
        # The graph is known: rows that are those of its tokens or requests.
        (16, "t h", VERIFY, PASS, 5),
        (8, "t v", VERIFY, PASS, 3),
        (8, "request v", VERIFY, PASS, 3),
        (32, "t h", VERIFY, SHARED, None),
        (16, "t h", VERIFY, SHARED, 5),
        (16, "request v", VERIFY, PASS, None),
        (16, "t h", GraphFacts(tokens=16), PASS, 5),
    ],
)
def test_rows_of_pass(rows: int, dims: str | None, facts: GraphFacts | None, size: PassSize | None, kept: int) -> None:
    assert rows_of_pass((rows, 4), dims, facts, size) == kept


def test_a_scalar_has_no_rows() -> None:
    assert rows_of_pass((), "t", None, PASS) is None


def test_the_size_of_a_pass_is_what_its_layout_says() -> None:
    spans = (SequenceSpan("a", 4, 1), SequenceSpan("b", 9, 1))
    plain = TokenLayout("decode", spans, rows=8)
    gathered = DataParallelRows("dp", 0, 2, (3, 3), (2, 1), "max_len")
    known = PassSize(7, 2)
    assert PassSize.of(plain) == PassSize(2, 2)
    assert PassSize.of(TokenLayout("decode", spans, rows=3, data_parallel=gathered)) == PassSize(3, 2, shared=True)
    assert PassSize.of(TokenLayout("decode", spans, rows=8, batch_shape=(2, 4))) is None
    assert PassSize.of(None) is None
    assert PassSize.of(PendingLayout({}, lambda arrays: plain, known)) is known


@pytest.mark.parametrize(("rows", "size"), [([0, 0, 1, -1], PassSize(3, 2)), ([0, -1, 1, 1], None)])
def test_rows_that_are_named_one_by_one_have_to_come_first(rows: list[int], size: PassSize | None) -> None:
    spans = (SequenceSpan("a", 0, 2), SequenceSpan("b", 0, 1))
    layout = TokenLayout(
        "extend", spans, rows=4, row_sequence=np.array(rows, np.int32), row_position=np.zeros(4, np.int64)
    )
    assert PassSize.of(layout) == size

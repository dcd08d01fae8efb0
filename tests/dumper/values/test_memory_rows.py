"""Rows in memory, against what torch says of the same view."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumper.values.memory_rows import memory_rows

torch = pytest.importorskip("torch", reason="torch is not installed")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_rows_hold_the_bytes_of_the_view(draw: st.DataObject) -> None:
    shape = draw.draw(st.lists(st.integers(0, 4), max_size=4))
    value = torch.arange(max(1, int(torch.tensor(shape).prod())), dtype=torch.int16)[: int(torch.tensor(shape).prod())]
    value = value.reshape(shape)
    for dimension in range(value.dim()):
        begin, step = draw.draw(st.integers(0, 2)), draw.draw(st.integers(1, 3))
        value = value[(slice(None),) * dimension + (slice(begin, None, step),)]
    if draw.draw(st.booleans()):
        value = value.permute(draw.draw(st.permutations(range(value.dim()))))
    if value.dim() and draw.draw(st.booleans()):
        value = value.unsqueeze(0).expand(3, *value.shape)
    kept = draw.draw(st.sampled_from([slice(None), slice(2), slice(None, None, 2), slice(0), slice(9)]))
    expected = (value[kept] if value.dim() else value).contiguous()
    rows = memory_rows(value.shape, value.stride(), 2, kept)
    if rows is None:
        assert not expected.numel() or not (value[kept] if value.dim() else value).is_contiguous()
        return
    assert rows.nbytes == expected.numel() * 2
    memory = bytes(value.untyped_storage())
    begin = value.storage_offset() * 2
    found = [memory[begin + row * rows.pitch :][: rows.width] for row in range(rows.height)]
    assert b"".join(found) == expected.numpy().tobytes()
    assert not rows.nbytes or begin + rows.extent <= len(memory)


def test_what_is_found_in_one_piece_and_what_is_not() -> None:
    value = torch.zeros(6, 5, 8)
    assert memory_rows(value.shape, value.stride(), 4, slice(None)).height == 1
    assert memory_rows((), (), 4, slice(None)).nbytes == 4
    columns = value[..., 2:5]
    found = memory_rows(columns.shape, columns.stride(), 4, slice(None, None, 1))
    assert (found.width, found.height, found.pitch) == (12, 30, 32)
    for view in (value.transpose(0, 2), value[0, :1].expand(4, 8), columns[:, :3]):
        assert memory_rows(view.shape, view.stride(), 4, slice(None)) is None

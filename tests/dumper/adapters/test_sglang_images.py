"""Which rows of a pass are of images, read before the pass forgets it."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from dumper.adapters import complete_at_start, read_batch, register, sglang_parallel
from dumper.adapters.sglang import SGLangAdapter
from dumper.format.layouts import decode_layout, encode_layout
from dumper.layout import TokenLayout

from .forward_batches import ForwardMode, PaddingMode, forward_batch, pad_for_data_parallel

PAD = 1_000_007
"""What stands for a token of an image before the pass."""


class Modality(Enum):
    IMAGE = 1
    AUDIO = 2


class Batch(SimpleNamespace):
    """Can be held weakly, as a ForwardBatch can."""


def item(*offsets: tuple[int, int], content: int = 0xABC, kind: Modality = Modality.IMAGE) -> SimpleNamespace:
    return SimpleNamespace(modality=kind, offsets=list(offsets), hash=content)


def batch_of(sequences: list[tuple[str, int, list[int]]], *items: Any, mode: ForwardMode = ForwardMode.EXTEND) -> Any:
    inputs = [None if one is None else SimpleNamespace(mm_items=one) for one in items]
    return Batch(**vars(forward_batch(mode, sequences, mm_inputs=inputs)))


def forget(batch: Any) -> None:
    """What the pass does before its first layer."""
    batch.mm_inputs = None
    batch.input_ids.clamp_(max=319)


def read(batch: Any, adapter: SGLangAdapter | None = None) -> TokenLayout:
    adapter = adapter or SGLangAdapter()
    adapter.note_start(batch)
    forget(batch)
    layout = adapter.read_batch(batch)
    assert isinstance(layout, TokenLayout)
    return decode_layout(encode_layout(layout))


def test_rows_of_images_are_told_although_the_pass_forgets_them() -> None:
    prompts = [("text", 0, [11, 12]), ("two", 0, [21, PAD, PAD, 22, PAD, 23])]
    layout = read(batch_of(prompts, None, [item((1, 2)), item((4, 4), content=5, kind=Modality.AUDIO)]))
    assert layout.extra["encoded"] == [[3, 2, "image", "abc"], [6, 1, "audio", "5"]]
    assert layout.token_ids is not None
    assert layout.token_ids.tolist() == [11, 12, 21, -1, -1, 22, -1, 23]


@pytest.mark.parametrize(
    ("start", "tokens", "expected"),
    [(0, [11, PAD], [[1, 1, "image", "abc"]]), (2, [PAD, PAD], [[0, 2, "image", "abc"]]), (4, [13, 14], None)],
)
def test_of_a_chunk_its_own_rows_are_told(start: int, tokens: list[int], expected: list[Any] | None) -> None:
    """The image is at positions 1 to 3 of a prompt of six tokens."""
    assert read(batch_of([("a", start, tokens)], [item((1, 3))])).extra.get("encoded") == expected


def test_tokens_that_follow_are_of_no_image() -> None:
    batch = batch_of([("a", 6, [14])], [item((1, 3), (5, 9))], mode=ForwardMode.DECODE)
    assert "encoded" not in read(batch).extra


def test_what_was_noted_of_another_batch_is_not_taken() -> None:
    adapter = SGLangAdapter()
    adapter.note_start(batch_of([("a", 0, [11, PAD])], [item((1, 1))]))
    layout = adapter.read_batch(forward_batch(ForwardMode.EXTEND, [("b", 0, [11, 12])]))
    assert isinstance(layout, TokenLayout)
    assert "encoded" not in layout.extra


def test_padding_of_the_pass_leaves_them_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_parallel, "parallel_axes", lambda: {"attn_dp": (0, 2)})
    adapter, batch = SGLangAdapter(), batch_of([("a", 0, [11, PAD, PAD])], [item((1, 2))])
    adapter.note_start(batch)
    pad_for_data_parallel(batch, [3, 5], 0, PaddingMode.MAX_LEN)
    forget(batch)
    layout = adapter.read_batch(batch)
    assert isinstance(layout, TokenLayout)
    assert layout.extra["encoded"] == [[1, 2, "image", "abc"]]
    assert layout.token_ids is not None
    assert layout.token_ids.tolist() == [11, -1, -1, 0, 0]


def test_the_recorder_asks_when_a_step_begins() -> None:
    register(SGLangAdapter())
    batch = batch_of([("a", 0, [11, PAD])], [item((1, 1))])
    assert not complete_at_start(batch)
    forget(batch)
    layout = read_batch(batch)
    assert isinstance(layout, TokenLayout)
    assert layout.extra["encoded"] == [[1, 1, "image", "abc"]]


@pytest.mark.parametrize("inputs", [[None], [SimpleNamespace()], [SimpleNamespace(mm_items=[SimpleNamespace()])]])
def test_inputs_that_say_nothing_are_no_images(inputs: list[Any]) -> None:
    batch = forward_batch(ForwardMode.EXTEND, [("a", 0, [11, 12])], mm_inputs=inputs)
    assert "encoded" not in read(batch).extra

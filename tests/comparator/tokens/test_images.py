"""Requests with images: their rows have no token, and requests are recognised by the images as well."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparator.plan.tokens.pass_rows import encoded_rows
from dumper.layout import SequenceSpan, TokenLayout
from testbed.synthetic_runs import SyntheticRun
from tests.comparator.tokens.joining import aligner_of, join

ROWS, IMAGE = 6, slice(2, 4)
"""Of each prompt."""


def run_of(images: list[str | None], text: int = 0) -> SyntheticRun:
    """A pass with a prompt for each image. All prompts are the same but for the images; None: marks of a release that
    told nothing, whose image is the last token of the vocabulary."""
    layouts, values = {}, {}
    for step, content in enumerate(images):
        ids = np.arange(ROWS) + 10 + text
        ids[IMAGE] = 319 if content is None else -1
        extra = {} if content is None else {"encoded": [[IMAGE.start, 2, "image", content]]}
        span = SequenceSpan(f"{text}-{step}", 0, ROWS)
        layouts[step, 0] = TokenLayout("extend", (span,), ROWS, token_ids=ids, extra=extra)
        values[step, 0] = np.full((ROWS, 4), 0.0 if content is None else float(int(content, 16)))
    steps = tuple(range(len(images)))
    return SyntheticRun(steps, (0,), {0: {"tp": (0, 1)}}, layouts, {"own": values})


@given(st.permutations(["a", "b", "c", "d"]))
def test_of_equal_texts_those_with_the_same_image_are_one_request(order: list[str]) -> None:
    joined = join(run_of(["a", "b", "c", "d"]), run_of(order))
    assert joined.plan.matched == 4 * ROWS
    assert joined.unequal.size == 0
    assert not any("image" in note for note in joined.plan.notes)


def test_another_image_in_the_same_place_is_compared_and_named() -> None:
    joined = join(run_of(["a", "b"]), run_of(["b", "c"]))
    assert joined.plan.matched == 2 * ROWS
    assert (joined.plan.sequence == 0).sum() == ROWS
    assert set(np.asarray(joined.plan.sequence)[joined.unequal]) == {0}
    (note,) = (note for note in joined.plan.notes if "image" in note)
    assert note.startswith("sequence 0 (0-0 / 0-1): the image or sound at position 2 is not the same in both runs")


@pytest.mark.parametrize("mode", ["smart", "concat_steps"])
def test_a_run_that_says_nothing_of_images_is_joined_as_before(mode: str) -> None:
    told, silent = run_of(["a", "b"]), run_of([None, None])
    for one, other in ((told, silent), (silent, told)):
        joined = join(one, other, mode)  # type: ignore[arg-type]
        assert joined.plan.matched == 2 * ROWS
        assert not joined.plan.other_tokens
        assert not any("part" in note for note in joined.plan.notes)
    found = aligner_of(silent, told).encoded()
    assert {number: mask.nonzero()[0].tolist() for number, mask in found.items()} == {0: [2, 3], 1: [2, 3]}


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.lists(st.one_of(st.integers(), st.lists(st.one_of(st.integers(-9, 99), st.text(max_size=3)), max_size=5))),
    )
)
def test_marks_that_make_no_sense_do_no_harm(told: object) -> None:
    layout = TokenLayout("extend", (SequenceSpan("a", 0, 4),), 4, extra={"encoded": told})
    assert encoded_rows(layout).shape == (4,)
    assert (encoded_rows(layout) >= 0).all()


def test_the_same_text_with_another_image_is_no_repeat() -> None:
    joined = join(run_of(["a", "b", "b"]), run_of(["a", "b", "c"]))
    assert joined.plan.matched == 3 * ROWS
    assert set(np.asarray(joined.plan.sequence)[joined.unequal]) == {2}
    again = join(run_of(["a"]), run_of(["a", "a", "c"]))
    assert any("1 of 3 sequences of the target repeat" in note for note in again.plan.notes)
    assert any("1 of 3 sequences are only in the target" in note for note in again.plan.notes)

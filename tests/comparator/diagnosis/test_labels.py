"""Labels of rows that are equal are one object, whose groups and prefixes are worked out once; and the median."""

from __future__ import annotations

import math
import pickle
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from comparator.diagnosis import tap_rows
from comparator.diagnosis.kernel import median
from comparator.diagnosis.tap_rows import RowLabels, extent_of, groups_of, has_whole_prefix, label_rows

Rows = list[tuple[int, int, int]]
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(-1, 2)), max_size=5)
KNOWN = st.sampled_from(["nothing", "tokens", "passes"])


def labels_of(rows: Rows, known: str) -> RowLabels:
    sequence, position, step = np.array(rows, np.int64).reshape(-1, 3).T
    if known == "nothing":
        return label_rows(len(rows))
    return label_rows(len(rows), sequence, position, step if known == "passes" else None)


def content(labels: RowLabels) -> Any:
    border = None if labels.border is None else labels.border.tolist()
    groups = [(name, mask.tolist()) for name, mask in groups_of(labels).items()]
    arrays = [one.tolist() for one in (labels.sequence, labels.position, labels.decode, has_whole_prefix(labels))]
    return labels.known, *arrays, border, groups


def content_alone(rows: Rows, known: str) -> Any:
    """Of labels that nothing is remembered of."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tap_rows, "_labels", [])
        patched.setattr(tap_rows, "_passes", [])
        return content(labels_of(rows, known))


@given(st.lists(st.tuples(ROWS, KNOWN), min_size=1, max_size=8))
def test_equal_labels_are_one_object_and_others_are_not(several: list[tuple[Rows, str]]) -> None:
    for rows, known in several:
        found = labels_of(rows, known)
        assert content(found) == content_alone(rows, known)
        assert found is labels_of(rows, known)
        assert content(pickle.loads(pickle.dumps(found))) == content(found)


@pytest.mark.parametrize("field", ["sequence", "position", "decode", "known", "border"])
def test_labels_that_differ_in_one_thing_are_told_apart(field: str) -> None:
    rows = np.arange(4)
    values = {"sequence": rows, "position": rows, "decode": rows > 1, "known": True, "border": rows > 2}
    others = {**values, field: not values[field] if field == "known" else values[field][::-1]}  # type: ignore[index]
    one, other = (pickle.loads(pickle.dumps(RowLabels(**of))) for of in (values, others))  # type: ignore[arg-type]
    assert one is not other
    assert one is pickle.loads(pickle.dumps(one))
    assert content(one) != content(other)


FLOATS = of_numpy.arrays(st.sampled_from([np.float32, np.float64]), st.integers(0, 9), elements={"allow_nan": True})


@given(FLOATS)
def test_the_median_is_numpys(values: npt.NDArray[Any]) -> None:
    with np.errstate(all="ignore"):
        expected = float(np.median(values)) if values.size else math.nan
    found = median(values)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_threads_that_compare_at_once_do_not_disturb_each_other() -> None:
    failures: list[Exception] = []

    def label(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for count in random.integers(1, 9, 1000).tolist():
                labels = label_rows(count, np.zeros(count, np.int64), np.arange(count), np.arange(count) % 2)
                assert len(labels) == count
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=label, args=(seed,)) for seed in range(6)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures


def test_what_nearly_all_rows_are_is_no_group_of_those_that_are_beyond() -> None:
    """Four of five rows are beyond, prefilled or not, or where nothing is known of decoding (a trainer)."""
    rows = np.arange(100)
    beyond = rows % 5 > 0
    for decode in (rows >= 94, np.zeros(100, bool)):
        labels = RowLabels(np.zeros(100, np.int64), rows, decode)
        found = extent_of(labels, beyond, np.ones(100, bool))
        assert found is not None
        assert found.group == ""
    labels = RowLabels(np.zeros(100, np.int64), rows, rows >= 94)
    found = extent_of(labels, beyond & (rows < 94) | (rows % 4 == 1) & (rows < 94), np.ones(100, bool))
    assert found is not None
    assert found.group == "prefill"

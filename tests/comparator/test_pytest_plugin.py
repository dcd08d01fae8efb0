"""The fixture that records inside a test."""

from __future__ import annotations

import numpy as np

import comparator
from comparator.pytest_plugin import Record
from dumper import dumper


def model(scale: float) -> None:
    for step in range(2):
        with dumper.step():
            dumper.dump("out", np.full((2, 3), 1.0 + step, np.float32) * np.float32(scale), dims="t h")


def test_two_recordings_in_one_test(tensortap_record: Record) -> None:
    with tensortap_record("before") as before:
        model(1)
    with tensortap_record("after") as after:
        model(1)
    with tensortap_record("faulty") as faulty:
        model(2)
    report = comparator.assert_runs_match(before, after)
    assert report.summary.passed == 2
    assert comparator.compare(before, faulty).summary.failed == 2
    assert not dumper.settings.enable

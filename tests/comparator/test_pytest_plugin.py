"""The fixture that records inside a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import tomllib

import comparator
from dumper import dumper
from pytest_tensortap import Record


def model(scale: float) -> None:
    for step in range(2):
        with dumper.step():
            dumper.dump("out", np.full((2, 3), 1.0 + step, np.float32) * np.float32(scale), dims="t h")


def test_pytest_imports_none_of_the_packages_at_its_start() -> None:
    """A test tree may have a package ``comparator`` of its own, as SGLang's has."""
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        plugins = tomllib.load(file)["project"]["entry-points"]["pytest11"]
    names = ["patcher", "dumper", "comparator", "tensortap"]
    code = f"import sys, {', '.join(plugins.values())}; print([name for name in {names} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


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

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comparator.diagnosis import Calibration, CalibrationError, TapKey, read_calibration, write_calibration

KEY = TapKey("attn_output", 3)


@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from([KEY.label, KEY.name, "other"]))
def test_a_calibration_never_lowers_a_floor(shipped, measured, name):
    raised = Calibration({name: measured}).raised(KEY, shipped)
    assert raised >= shipped
    assert raised == (max(shipped, measured) if name != "other" else shipped)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "floors.json"
    write_calibration(Calibration({"a": 0.25, "b layer 1": 1e-7}), path)
    assert read_calibration(path).floors == {"a": 0.25, "b layer 1": 1e-7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no calibration file"),
        (json.dumps({"format": "other"}), "no calibration file"),
        (json.dumps({"format": "tensortap-calibration", "version": 2, "floors": {}}), "version 2"),
        (json.dumps({"format": "tensortap-calibration", "version": 1}), "'floors'"),
        (json.dumps({"format": "tensortap-calibration", "version": 1, "floors": {"a": "x"}}), "'a'"),
        (json.dumps({"format": "tensortap-calibration", "version": 1, "floors": {"a": -1}}), "'a'"),
        ('{"format": "tensortap-calibration", "version": 1, "floors": {"a": NaN}}', "'a'"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, content, message):
    path = tmp_path / "floors.json"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=message) as caught:
        read_calibration(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match="cannot read"):
        read_calibration(tmp_path / "none.json")


def test_taps_that_are_not_recorded_are_listed():
    found = Calibration({"attn_output": 1, "attn_output layer 9": 1, "attn_output layer 3": 1}).unknown_taps([KEY])
    assert found == ("attn_output layer 9",)

"""Whatever a parser is given, it answers with a value or with its own error; a few inputs for each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

INPUTS = 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@settings(max_examples=INPUTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_parser_answers(target: Target, data: Any) -> None:
    target.run(data.draw(target.inputs))

"""Whatever kind of tensor comes: the process, the model and the device survive, and what is not recorded is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gpu.exotic_values import LEVELS, MAKERS, SKIPPED, TRANSFORMS
from tests.gpu.recordings import python

RECORDED = {
    "dtensor_replicate",
    "dtensor_shard",
    "async_collective",
    "functorch_grad",
    "nested_strided",
    "nested_jagged",
}


@pytest.mark.parametrize("name", [*MAKERS, *TRANSFORMS])
def test_values_that_are_no_plain_tensors(tmp_path: Path, name: str) -> None:
    child = python("-X", "faulthandler", "-m", "tests.gpu.exotic_values", name, str(tmp_path))
    last = child.stdout.strip().splitlines()[-1]
    if child.returncode == SKIPPED:
        pytest.skip(f"torch cannot make it here: {last}")
    assert child.returncode == 0, child.stdout[-3000:]
    for level, said in zip(LEVELS, json.loads(last), strict=True):
        if name in RECORDED:
            assert said["lost"] == 0, (level, said)
            assert said["names"]
        else:
            assert said["lost"] == 2, (level, said)
            assert said["names"] == ["pair.1"]

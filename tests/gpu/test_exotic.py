"""Whatever kind of tensor comes: the process, the model and the device survive, and what is not recorded is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from subprocess import CompletedProcess

import pytest

from tests.gpu.exotic_values import LEVELS, MAKERS, SKIPPED, TRANSFORMS
from tests.gpu.recordings import CUDA, python

RECORDED = {
    "dtensor_replicate",
    "dtensor_shard",
    "async_collective",
    "functorch_grad",
    "nested_strided",
    "nested_jagged",
}


NAMES = (*MAKERS, *TRANSFORMS)
AT_ONCE = 6 if CUDA else 2


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[CompletedProcess[str]]]]:
    """A process for each value."""

    base = tmp_path_factory.mktemp("exotic")

    def run(name: str) -> CompletedProcess[str]:
        folder = base / name
        folder.mkdir()
        return python("-X", "faulthandler", "-m", "tests.gpu.exotic_values", name, str(folder))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(run, name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_no_plain_tensors(children: dict[str, Future[CompletedProcess[str]]], name: str) -> None:
    child = children[name].result()
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

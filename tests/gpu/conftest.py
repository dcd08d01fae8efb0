"""All tests here are marked ``gpu``. Without a device none is collected, and the summary says so in one line
(``tests/conftest.py``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.devices import ON_CPU, why_no_gpu

ON_CPU_ALONE = os.environ.get(ON_CPU) == "1"
HERE = Path(__file__).parent

if why_no_gpu() and not ON_CPU_ALONE:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if ON_CPU_ALONE and item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="this needs a CUDA device"))


@pytest.fixture(autouse=True)
def _clean_device() -> Iterator[None]:
    """Nothing of one test is on the device when the next begins."""
    import gc

    import torch

    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@pytest.fixture
def recordings(tmp_path: Path) -> Iterator[object]:
    from tests.gpu.recordings import Recordings

    found = Recordings(tmp_path)
    yield found
    found.close()

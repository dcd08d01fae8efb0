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


def _launches_directly(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return call is not None and bool(call.params.get("direct_launch"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A launch that fails may end the context of its process, with what else would run there.
    items.sort(key=_launches_directly)
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


BOTH_WAYS = ("test_copies", "test_kernels", "test_levels", "test_shortcut")
"""What runs by default, with direct launches, and without them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_WAYS and "recordings" in metafunc.fixturenames:
        metafunc.parametrize("direct_launch", [False, True], ids=["runtime", "direct"], indirect=True)


@pytest.fixture
def direct_launch(request: pytest.FixtureRequest) -> bool:
    """The setting of that name, of all ``recordings``."""
    return bool(getattr(request, "param", True))


@pytest.fixture
def recordings(tmp_path: Path, direct_launch: bool) -> Iterator[object]:
    from tests.gpu.recordings import Recordings

    found = Recordings(tmp_path, direct_launch=direct_launch)
    yield found
    found.close()

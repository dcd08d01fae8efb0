"""Recordings of values on a stand-in for a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dumper.memory.stand_in_kernels import WAYS, Kernels, set_way, stand_in
from tests.dumper.recording.conftest import Recording


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    kernels = stand_in(monkeypatch)
    yield kernels
    kernels.runtime.end()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recording(tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch, way: str) -> Iterator[Recording]:
    """Closed before the stand-in ends, which the writer waits for."""
    made = Recording(tmp_path, **set_way(way, kernels, monkeypatch))
    yield made
    made.close()
    if not way.startswith("direct"):
        assert kernels.runtime.loaded + kernels.runtime.launches_of_compiled_code == 0
        assert kernels.prepared_directly + kernels.exchange.on_device == 0

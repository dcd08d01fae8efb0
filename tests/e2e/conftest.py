"""Real servers are slow to start: what one recorded serves every test of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed.layouts import LAYOUTS, record
from testbed.servers import warm_servers
from testbed.warm import WarmLauncher

Recordings = Callable[[str], Path]


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmLauncher]:
    """The process that most servers are forked from."""
    with warm_servers(tmp_path_factory.mktemp("warm") / "log") as launcher:
        yield launcher


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory, warm: WarmLauncher) -> Recordings:
    """``recordings("tp2")`` is the run directory of that layout, recorded when it is first asked for."""
    folder = tmp_path_factory.mktemp("recordings")
    done: dict[str, Path] = {}

    def recorded(name: str) -> Path:
        if name not in done:
            record(LAYOUTS[name], folder / name, warm=warm)
            done[name] = folder / name
        return done[name]

    return recorded

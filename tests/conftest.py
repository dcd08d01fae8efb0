"""Settings of the whole suite."""

from __future__ import annotations

import gc
import os
import resource
import signal
from pathlib import Path

import hypothesis
import pytest

import testbed.sglang_cpu.torchvision_operators  # noqa: F401  Transformers imports torchvision
from testbed import forked
from testbed.devices import ON_CPU, why_no_gpu
from testbed.forked import ForkHost

E2E = Path(__file__).parent / "e2e"

# numpy's threads wait for each other longer than they work, on the small arrays of tests and beside other processes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Modules and tests are very many objects that stay; looking for garbage among them takes a fifth of the collection.
gc.set_threshold(50_000)
MUCH_GARBAGE = 1 << 30
"""Bytes that a process may grow by before it is looked for all the same: recorders that were closed hold buffers."""
_grown_from = [MUCH_GARBAGE]

# No test depends on how fast the machine is. In CI every run tries the same examples.
hypothesis.settings.register_profile(
    "tensortap",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tensortap")


def pytest_configure() -> None:
    # SIGTERM ends the session as Ctrl-C does, so that fixtures stop the servers that they started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_runtest_logfinish() -> None:
    if resident_bytes() > _grown_from[0] + MUCH_GARBAGE:
        gc.collect()
        _grown_from[0] = resident_bytes()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    folder, reason = Path(__file__).parent / "gpu", why_no_gpu()
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if reason and os.environ.get(ON_CPU) != "1" and any(one == folder or one in folder.parents for one in asked):
        terminalreporter.write_line(f"tests/gpu was not run: {reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if E2E in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # What takes long comes first, so that no process is left with it at the end.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: 0 if E2E in item.path.parents else 1 if item.path in slow else 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With ``-n``: one process takes all tests with servers, which they share, one all on a cluster; the others go by
    file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            shared = (folder for folder in ("tests/e2e", "tests/comparator/cluster") if path.startswith(f"{folder}/"))
            return next(shared, path)

    return ByFile(config, log)


@pytest.fixture
def light_host() -> ForkHost:
    """The process that programs without torch are forked from."""
    return forked.light_host()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not record because the developer's shell says so."""
    for name in list(os.environ):
        if name.startswith("TENSORTAP_"):
            monkeypatch.delenv(name)

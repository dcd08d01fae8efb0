"""Nothing that a supervised command started may outlive the one who started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from testbed.servers import supervised
from testbed.warm import WarmLauncher, warm_launcher

FAMILY = """
import multiprocessing, os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
orphan_maker = subprocess.run([sys.executable, "-c", '''
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL).pid)
'''], stdout=subprocess.PIPE)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / "pids").write_text(f"{os.getpid()} {grandchild.pid} {orphan_maker.stdout.decode().strip()}")
time.sleep(600)
"""
"""A process that ignores SIGTERM, a child in a session of its own, and an orphan."""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def family(folder: Path) -> list[int]:
    wait_for(lambda: (folder / "pids").exists() and len((folder / "pids").read_text().split()) == 3)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def test_everything_is_gone_after_the_block(tmp_path: Path) -> None:
    with supervised([sys.executable, "-c", FAMILY, str(tmp_path)], {}, tmp_path / "log"):
        pids = family(tmp_path)
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_everything_is_gone_when_the_block_raises(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupted() -> None:
        with supervised([sys.executable, "-c", FAMILY, str(tmp_path)], {}, tmp_path / "log"):
            pids.extend(family(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_everything_is_gone_after_the_owner_was_killed(tmp_path: Path) -> None:
    owner_code = (
        "import pathlib, sys, time\n"
        "from testbed.servers import supervised\n"
        "folder, family = sys.argv[1:]\n"
        "with supervised([sys.executable, '-c', family, folder], {}, pathlib.Path(folder, 'log')):\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", owner_code, str(tmp_path), FAMILY])
    pids = family(tmp_path)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_leaf_may_finish_its_work(tmp_path: Path) -> None:
    """A rank gets SIGTERM and time to close its recording before its launcher is killed."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def finish(*_):\n"
        "    time.sleep(0.3)\n"
        "    pathlib.Path(sys.argv[1], 'finished').touch()\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, finish)\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "time.sleep(600)\n"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}, sys.argv[1]])"
    with supervised([sys.executable, "-c", launcher, str(tmp_path)], {}, tmp_path / "log"):
        wait_for((tmp_path / "ready").exists)
    assert (tmp_path / "finished").exists()


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[WarmLauncher]:
    (tmp_path / "family.py").write_text(FAMILY)
    (tmp_path / "family_of_processes.py").write_text(
        "import pathlib, runpy\n"
        "if __name__ == '__main__':\n"
        "    runpy.run_path(str(pathlib.Path(__file__).with_name('family.py')))\n"
    )
    with warm_launcher("family_of_processes", (), {"PYTHONPATH": str(tmp_path)}, tmp_path / "warm.log") as launcher:
        yield launcher


def test_everything_that_was_forked_is_gone_after_the_block(warm: WarmLauncher, tmp_path: Path) -> None:
    """Two servers of one process: the end of the first does not touch the second."""
    folders = [tmp_path / "first", tmp_path / "second"]
    with contextlib.ExitStack() as stack:
        pids = []
        for folder in reversed(folders):
            folder.mkdir()
            server = stack.enter_context(warm.server([str(folder)], {}, folder / "log", grace=0.1))
            pids.append(family(folder))
        second, first = pids
        assert server.poll() is None
        server.end()
        assert server.poll() is not None
        assert not any(psutil.pid_exists(pid) for pid in first)
        assert all(psutil.pid_exists(pid) for pid in second)
    assert not any(psutil.pid_exists(pid) for pid in second)


def test_a_forked_server_ends_with_an_exit_code_and_its_error_in_the_log(warm: WarmLauncher, tmp_path: Path) -> None:
    with warm.server([], {}, tmp_path / "log", grace=0.1) as server:
        assert server.wait() == 1
    assert "IndexError" in (tmp_path / "log").read_text()

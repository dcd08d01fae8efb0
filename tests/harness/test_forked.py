"""A program that is forked ends as one that is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testbed.forked import LIGHT, ForkHost, fork_host

PROGRAMS = (
    "print('said'); raise SystemExit(3)",
    "raise ValueError('wrong')",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "import atexit, threading; atexit.register(print, 'end'); threading.Thread(target=print, args=('late',)).start()",
    "import os, sys; print(sys.argv, os.getcwd(), os.environ['ASKED'], __name__)",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_ends_as_one_that_is_started(light_host: ForkHost, tmp_path: Path, program: str) -> None:
    environment = {"ASKED": "for"}
    forked = light_host.run(program, "one", "two", environment=environment, folder=tmp_path)
    command = [sys.executable, "-c", program, "one", "two"]
    started = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_a_module_runs_as_the_main_one(light_host: ForkHost) -> None:
    forked = light_host.run("dumper", "ls", "/nowhere", module=True)
    assert forked.returncode == 2
    assert "/nowhere" in forked.stderr


def test_one_that_does_not_end_is_killed() -> None:
    with fork_host(()) as host:
        with pytest.raises(subprocess.TimeoutExpired):
            host.run("import time; time.sleep(600)", timeout=1)
        assert host.run("print('the next one')").stdout == "the next one\n"


def test_the_dumper_reads_the_environment_of_the_program(light_host: ForkHost) -> None:
    program = "import sys; print('dumper.recording.recorder' in sys.modules)"
    assert "dumper.recording.session" in LIGHT
    assert light_host.run(program).stdout == "False\n"
